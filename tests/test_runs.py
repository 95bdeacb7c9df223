"""Runs that are stopped, killed, starved of disk and spread over processes, and go on."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_lib import checkpoint, runs, training
from diffusion_lib.checkpoint import CheckpointError
from diffusion_lib.data import Dataset, load
from diffusion_lib.runs import RunConfig, latest, run
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import TrainConfig, train
from diffusion_lib.unet import UNet

TRAINING = TrainConfig(steps=20, batch_size=8, warmup=4)


def config(out, **changes):
    """A network and a run that take a second."""
    training = {name: changes.pop(name) for name in list(changes) if hasattr(TRAINING, name)}
    settings = dict(widths=(8, 8), T=50, checkpoint_every=5, log_every=1, evaluate_every=1000)
    return RunConfig(out, **settings | changes, training=replace(TRAINING, **training))


@pytest.fixture(scope="module", autouse=True)
def quick_measurements():
    """The last step measures the held-out error: on few images here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SCORED", 8)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(config(folder))
    return folder


def lines(folder, key="loss"):
    """(step, value) of every line of the log that has this key."""
    log = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in log.splitlines()]
    return [(line["step"], line[key]) for line in found if key in line]


def assert_same_run(folder, other):
    """Every bit of weights, average, optimizer and generator, and every loss on the way."""
    (ours, about), (theirs, _) = (checkpoint.load(latest(f)) for f in (folder, other))
    assert about["step"] == 20 and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(folder) == lines(other)
    assert [step for step, _ in lines(folder)] == list(range(1, 21))


def interrupting(monkeypatch, at, act):
    """Call `act` within the given step of the run that follows."""
    record = runs._Recorder.record

    def wrapped(self, state, stop):
        record(self, state, stop)
        if state.step == at:
            act()

    monkeypatch.setattr(runs._Recorder, "record", wrapped)


def test_training_goes_on_from_its_tensors_bit_by_bit():
    schedule, data = NoiseSchedule.cosine(50), load("digits")

    def network(seed=0):
        return UNet(widths=(8, 8), blocks=1, seed=seed)

    *_, whole = train(network(), schedule, data, TRAINING)
    for state in train(network(), schedule, data, TRAINING):
        if state.step == 10:
            tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
            break
    # Another start, which resuming must overwrite in full.
    *_, resumed = train(network(seed=9), schedule, data, TRAINING, tensors)
    a, b = whole.tensors(), resumed.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(whole.loss, resumed.loss) and resumed.step == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [3, 10])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, whole, monkeypatch, number, at):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupting(patch, at, lambda: os.kill(os.getpid(), number))
        network = run(config(tmp_path))
    assert signal.getsignal(number) is before
    # It left after the step under way, with a checkpoint of its own.
    assert latest(tmp_path).name == f"checkpoint-{at + 1:08d}.safetensors"
    assert network.about["step"] == at + 1
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 9, "lo')  # as a kill leaves it
    run(config(tmp_path))
    assert_same_run(tmp_path, whole)


def test_the_seed_of_a_run_is_that_of_its_first_weights(tmp_path):
    network = run(config(tmp_path, steps=1, learning_rate=1e-12, seed=5))
    for seed in (5, 0):
        fresh = UNet(widths=(8, 8), blocks=1, seed=seed).state_dict()
        found = network.model.state_dict()
        same = all(torch.allclose(found[name], fresh[name], atol=1e-6) for name in fresh)
        assert same is (seed == 5)


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    interrupting(monkeypatch, 3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path))


def test_only_the_two_latest_checkpoints_are_kept(whole):
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == [
        "checkpoint-00000015.safetensors",
        "checkpoint-00000020.safetensors",
    ]


def test_a_finished_run_is_left_as_it_is(tmp_path, whole):
    network = run(config(tmp_path))
    before = latest(tmp_path).read_bytes()
    again = run(config(tmp_path))
    assert latest(tmp_path).read_bytes() == before
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.model.parameters(), again.model.parameters(), strict=True)
    )


# Imports once, then forks a run for each line and kills it after so many seconds.
KILLER = """
import os, signal, sys, time
from pathlib import Path
import torch
from test_runs import config, runs
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # imports much more
runs.SCORED = 8
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        runs.run(config(Path(sys.argv[1]), checkpoint_every=1))
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, whole):
    killer = subprocess.Popen(
        [sys.executable, "-c", KILLER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=os.path.dirname(__file__),
    )
    chance, longest, reached = random.Random(0), 0.3, [0]
    with killer:
        while len(reached) < 30 and reached[-1] < 15:
            print(chance.uniform(0, longest), file=killer.stdin, flush=True)
            assert killer.stdout.readline() == "killed\n"
            path = latest(tmp_path)
            reached.append(checkpoint.load(path)[1]["step"] if path else 0)
            # On a slow or busy machine it takes longer to come to the first step.
            longest *= 1 if reached[-1] > reached[-2] else 1.3
    assert reached == sorted(reached) and len(set(reached)) > 2
    run(config(tmp_path, checkpoint_every=1))
    assert_same_run(tmp_path, whole)


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_named(tmp_path, whole):
    run(config(tmp_path))
    damage(latest(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="damaged.*; delete it to go on from .*00000015"):
        run(config(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    latest(tmp_path).unlink()
    run(config(tmp_path))
    assert_same_run(tmp_path, whole)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(1, 21))


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint-00000001.safetensors"
    checkpoint.save(path, {"weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
        run(config(tmp_path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_with_other_settings_is_refused_by_their_names(tmp_path):
    run(config(tmp_path))
    message = "holds a run with other settings: T was 50, now 60, "
    message += "batch_size was 8, now 9, learning_rate was 0.002, now 0.1, seed was 0, now 1"
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, T=60, batch_size=9, learning_rate=0.1, seed=1))
    # What changes no weight may differ.
    run(config(tmp_path, log_every=7, checkpoint_every=3))


def test_a_run_on_other_images_is_refused(tmp_path, monkeypatch):
    run(config(tmp_path))
    digits = load("digits")
    flipped = Dataset("digits", digits.images.flip(3), digits.labels)
    monkeypatch.setattr(runs, "load", lambda *args, **settings: flipped)
    with pytest.raises(ValueError, match="holds a run on other images: .*1545.*, now .*1545"):
        run(config(tmp_path))


def test_a_network_too_deep_for_its_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be divisible by 16, .* got 8×8"):
        run(config(tmp_path, widths=(8, 8, 8, 8, 8)))
    assert latest(tmp_path) is None


def test_missing_data_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFUSION_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="mnist is not in"):
        run(config(tmp_path / "run", data="mnist", root=tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("read", [True, False], ids=["cpu", "gpu, between two looks"])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(
    tmp_path, monkeypatch, read
):
    monkeypatch.setattr(training, "may_read", lambda step, device: read)
    with pytest.raises(FloatingPointError, match=r"at step \d+, learning rate \S+e\+\d\d"):
        run(config(tmp_path, learning_rate=1e20, warmup=0, checkpoint_every=1))
    tensors, _ = checkpoint.load(latest(tmp_path))
    # Of the schedule's tables one is infinite at t = 0.
    learnt = [t for name, t in tensors.items() if not name.startswith("schedule")]
    assert all(tensor.isfinite().all() for tensor in learnt)
    assert all(math.isfinite(loss) for _, loss in lines(tmp_path))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(small_disk, whole, monkeypatch):
    def fill():
        path = small_disk / "other"
        # No buffer: what is left in one fails again as the file is closed, and ends the run here.
        with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))

    out = small_disk / "run"
    with monkeypatch.context() as patch:
        interrupting(patch, 7, fill)
        message = "No space left on device; make room. .*checkpoint-00000005.*, is whole"
        with pytest.raises(OSError, match=message):
            run(config(out, log_every=100))
    assert latest(out).name == "checkpoint-00000005.safetensors"
    assert not list(out.glob(".*.partial"))
    (small_disk / "other").unlink()
    run(config(out))
    ours, theirs = (checkpoint.load(latest(folder))[0] for folder in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def command(out, *options):
    settings = "--widths 8 8 --T 50 --log-every 1 --evaluate-every 1000 --batch-size 8 --warmup 4"
    return ["-m", "diffusion_lib", "train", "--out", str(out), *settings.split(), *options]


def average(tensors):
    return [tensor for _, tensor in sorted(checkpoint.under("average", tensors).items())]


def torchrun(*arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]


def test_two_processes_have_the_losses_of_one(tmp_path, whole):
    start = torchrun("--nproc-per-node", "2", *command(tmp_path, "--steps", "20"))
    result = subprocess.run(start, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    ours, theirs = lines(tmp_path), lines(whole)
    assert [step for step, _ in ours] == list(range(1, 21))
    for (_, loss), (_, wanted) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-4)
    # One writer, and what it wrote one process can go on with.
    tensors, about = checkpoint.load(latest(tmp_path))
    assert about["step"] == 20
    wanted = checkpoint.load(latest(whole))[0]
    # As a whole: Adam makes much of the rounding of a gradient that is nearly zero.
    ours, theirs = (torch.cat([v.flatten() for v in average(t)]) for t in (tensors, wanted))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@contextmanager
def started(command):
    """A process that does not outlive the test."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                child.kill()
            process.kill()


def wait_for_checkpoint(folder, after=None):
    deadline = time.monotonic() + 200
    while latest(folder) == after:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return latest(folder)


def test_a_killed_process_ends_the_run_which_goes_on_from_its_last_checkpoint(tmp_path):
    forever = command(tmp_path, "--steps", "100000", "--checkpoint-every", "10")
    with started(torchrun("--nproc-per-node", "2", *forever)) as launcher:
        wait_for_checkpoint(tmp_path)
        (victim,) = [
            child
            for child in psutil.Process(launcher.pid).children()
            if "diffusion_lib" in child.cmdline() and child.environ()["RANK"] == "1"
        ]
        victim.kill()
        output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode != 0
    assert "process 0 lost the others" in output and "Signal 9 (SIGKILL)" in output, output
    kept = latest(tmp_path)
    assert f"The last checkpoint, {kept}, is whole: the same command goes on" in output
    step = checkpoint.load(kept)[1]["step"]
    assert step >= 10 and step % 10 == 0

    # One process instead of two, stopped as a batch system would stop it.
    with started([sys.executable, *forever]) as alone:
        wait_for_checkpoint(tmp_path, after=kept)
        alone.send_signal(signal.SIGTERM)
        output, _ = alone.communicate(timeout=100)
    reached = checkpoint.load(latest(tmp_path))[1]["step"]
    assert lines(tmp_path, "started")[-1][0] == step < reached
    # A script must not take a stopped run for a finished one.
    assert alone.returncode == 1 and f"stopped at step {reached}; the same command" in output


def test_two_processes_stop_together_with_a_checkpoint(tmp_path):
    forever = command(tmp_path, "--steps", "100000", "--checkpoint-every", "10")
    with started(torchrun("--nproc-per-node", "2", *forever)) as launcher:
        first = wait_for_checkpoint(tmp_path)
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=200)
    assert checkpoint.load(latest(tmp_path))[1]["step"] > checkpoint.load(first)[1]["step"]


def test_processes_that_see_different_folders_are_told(monkeypatch):
    monkeypatch.setattr(runs.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(runs.distributed, "get_world_size", lambda: 2)

    def gather(starts, start):
        starts[:] = [start, 0]

    monkeypatch.setattr(runs.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match=r"different checkpoints in here, of steps \[10, 0\]"):
        runs._agree(10, "here")


def test_on_a_gpu_a_fault_freezes_the_weights_until_it_is_read(monkeypatch):
    """There it is read every 50 steps only; nothing that came after it may be saved."""
    monkeypatch.setattr(training, "may_read", lambda step, device: step % 50 == 0)
    loss, steps = training.denoising_loss, []

    def failing(*arguments):
        steps.append(1)
        return loss(*arguments) * (math.nan if len(steps) == 15 else 1)

    monkeypatch.setattr(training, "denoising_loss", failing)
    model, good = UNet(widths=(8, 8), blocks=1), None
    states = train(model, NoiseSchedule.cosine(50), load("digits"), replace(TRAINING, steps=60))
    with pytest.raises(FloatingPointError, match="became nan .* at step 15, learning rate 0.00"):
        for state in states:
            if state.step == 14:
                good = [weight.detach().clone() for weight in model.parameters()]
            if state.step in (15, 30):
                with pytest.raises(FloatingPointError, match="at step 15"):
                    state.tensors()
    assert state.step == 49
    assert all(torch.equal(a, b) for a, b in zip(good, model.parameters(), strict=True))


def test_a_run_without_git_has_no_commit_to_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.provenance()["commit"] is None
    # Nor a command that a test runner was started with.
    assert runs.provenance()["command"] is None


def test_the_end_of_the_terminal_is_not_the_end_of_the_run(tmp_path, whole, monkeypatch):
    def broken(*arguments, **settings):
        raise BrokenPipeError("the reader is gone")

    monkeypatch.setattr(runs.tqdm, "update", broken)
    monkeypatch.setattr(runs.tqdm, "write", broken)
    run(config(tmp_path))
    assert_same_run(tmp_path, whole)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    def again():
        with pytest.raises(BlockingIOError, match="another run is under way here: '"):
            run(config(tmp_path, steps=20))

    interrupting(monkeypatch, 5, again)
    run(config(tmp_path))


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / ".checkpoint-00000005.safetensors.1.partial").write_bytes(b"half")
    run(config(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_a_run_of_another_kind_of_device_is_refused(tmp_path):
    run(config(tmp_path, steps=5))
    tensors, about = checkpoint.load(latest(tmp_path))
    checkpoint.save(latest(tmp_path), tensors, about | {"device": "cuda"})
    with pytest.raises(ValueError, match="a run on cuda, whose random numbers cpu cannot go on"):
        run(config(tmp_path, steps=5))


@pytest.mark.parametrize("settings", [dict(bfloat16=True), dict(compile=True)])
def test_what_pays_on_a_gpu_is_right_here(settings, monkeypatch, whole):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    model = UNet(widths=(8, 8), blocks=1)
    short = replace(TRAINING, **settings)
    *_, state = train(model, NoiseSchedule.cosine(50), load("digits"), short)
    assert state.loss.dtype == state.norm.dtype == torch.float32
    assert state.loss.item() == pytest.approx(lines(whole)[-1][1], rel=0.02)
    kept = checkpoint.load(latest(whole))[0].keys()
    assert state.tensors().keys() == {name for name in kept if not name.startswith("schedule")}
