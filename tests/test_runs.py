"""Runs that are stopped, killed, starved of disk and spread over processes, and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch

from diffusion_lib import checkpoint, runs
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
    run(config(tmp_path))
    assert_same_run(tmp_path, whole)


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
    chance, longest, reached = random.Random(0), 0.5, [0]
    while len(reached) < 30 and reached[-1] < 15:
        print(chance.uniform(0, longest), file=killer.stdin, flush=True)
        assert killer.stdout.readline() == "killed\n"
        path = latest(tmp_path)
        reached.append(checkpoint.load(path)[1]["step"] if path else 0)
        # On a slow or busy machine it takes longer to come to the first step.
        longest *= 1 if reached[-1] > reached[-2] else 1.3
    killer.communicate()
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


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint-00000001.safetensors"
    checkpoint.save(path, {"weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
        run(config(tmp_path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_with_other_settings_is_refused_by_their_names(tmp_path):
    run(config(tmp_path))
    message = "holds a run with other settings: T was 50, now 60, seed was 0, now 1"
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, T=60, seed=1))
    # What changes no weight may differ.
    run(config(tmp_path, log_every=7, checkpoint_every=3))


def test_a_run_on_other_images_is_refused(tmp_path, monkeypatch):
    run(config(tmp_path))
    digits = load("digits")
    fewer = Dataset("digits", digits.images[:100], digits.labels[:100])
    monkeypatch.setattr(runs, "load", lambda *args, **settings: fewer)
    with pytest.raises(ValueError, match="holds a run on other images: .*1545.*, now .*100"):
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


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d+, learning rate \S+e\+\d\d"):
        run(config(tmp_path, learning_rate=1e20, warmup=0, checkpoint_every=1))
    tensors, _ = checkpoint.load(latest(tmp_path))
    assert all(tensor.isfinite().all() for tensor in tensors.values())


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
        with open(small_disk / "other", "wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
                file.flush()

    out = small_disk / "run"
    with monkeypatch.context() as patch:
        interrupting(patch, 7, fill)
        message = r"could not be written \(.*checkpoint-00000005.* is whole\): No space"
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
    result = subprocess.run(start, capture_output=True, text=True, check=False)
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


def test_a_killed_process_ends_the_run_which_goes_on_from_its_last_checkpoint(tmp_path):
    start = torchrun(
        "--nproc-per-node", "2", *command(tmp_path, "--steps", "100000", "--checkpoint-every", "10")
    )
    launcher = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while latest(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [
        child
        for child in psutil.Process(launcher.pid).children()
        if "diffusion_lib" in child.cmdline() and child.environ()["RANK"] == "1"
    ]
    workers[0].kill()
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "process 0 lost the others" in output and "Signal 9 (SIGKILL)" in output, output
    kept = latest(tmp_path)
    assert f"goes on from the last checkpoint, {kept}" in output
    step = checkpoint.load(kept)[1]["step"]
    assert step >= 10 and step % 10 == 0

    # One process instead of two, stopped as a batch system would stop it.
    alone = subprocess.Popen(
        [sys.executable, *command(tmp_path, "--steps", "100000", "--checkpoint-every", "10")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while latest(tmp_path) == kept and time.monotonic() < deadline + 120:
        time.sleep(0.1)
    alone.send_signal(signal.SIGTERM)
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == 0, output
    first = lines(tmp_path, "started")[-1][0]
    assert first == step and checkpoint.load(latest(tmp_path))[1]["step"] > step
