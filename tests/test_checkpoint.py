"""Files of weights: whole or refused, never half, never executed."""

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from diffusion_lib import checkpoint, data
from diffusion_lib.checkpoint import CheckpointError, load, load_network, save, save_network
from diffusion_lib.evaluation import error_by_level
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.unet import UNet

ABOUT = {"step": 3, "note": "β, ᾱ", "nested": {"list": [1, 2.5, None]}}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "step": torch.tensor(7),
        "bytes": torch.arange(16, dtype=torch.uint8),
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "a.safetensors", tensors(), ABOUT)
    found, about = load(tmp_path / "a.safetensors")
    assert about == ABOUT
    assert_same(found, tensors())
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_description_that_looks_like_a_digest_does_no_harm(tmp_path):
    about = {"parent_sha256": "0" * 64, "sha256": "0" * 64, "a": '"sha256":"' + "0" * 64 + '"'}
    for _ in range(10):  # the order within the header is left to chance
        save(tmp_path / "a.safetensors", tensors(), about)
        assert load(tmp_path / "a.safetensors")[1] == about


def test_other_tools_read_it(tmp_path):
    from safetensors import safe_open

    save(tmp_path / "a.safetensors", tensors(), ABOUT)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"]) == ABOUT
        assert_same({name: file.get_tensor(name) for name in file.keys()}, tensors())  # noqa: SIM118


def test_weights_of_any_memory_format_are_saved(tmp_path):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save(tmp_path / "a.safetensors", {"weight": weight, "part": weight[:, 1]}, {})
    found, _ = load(tmp_path / "a.safetensors")
    assert_same(found, {"weight": weight, "part": weight[:, 1]})


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the length, the header, the description, the digest and the numbers alike."""
    path = tmp_path / "a.safetensors"
    save(path, tensors(), ABOUT)
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is damaged"):
            load(path)
    path.write_bytes(good)
    load(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, tensors(), ABOUT)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickled").write_bytes(pickle.dumps(Bomb()))
    torch.save({"model": Bomb()}, tmp_path / "saved")
    for name in ("pickled", "saved"):
        with pytest.raises(CheckpointError, match="not written by diffusion_lib"):
            load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by diffusion_lib"):
        load(tmp_path / "foreign.safetensors")
    save(tmp_path / "other.safetensors", {"weight": torch.zeros(3)}, {})
    with pytest.raises(CheckpointError, match="holds no network to sample from"):
        load_network(tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("half", [False, True])
def test_a_network_comes_back_as_it_was(tmp_path, half):
    model = UNet(widths=(8, 16), blocks=1, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1
    schedule = NoiseSchedule.from_beta(torch.linspace(0.01, 0.3, 17))
    path = tmp_path / "network.safetensors"
    save_network(path, model, schedule, "velocity", {"data": "none"}, half=half)
    network = load_network(path)
    assert network.target == "velocity" and network.about["data"] == "none"
    for name, table in schedule.tables().items():
        assert torch.equal(table, getattr(network.schedule, name))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 17])
    assert not any(p.requires_grad for p in network.model.parameters())
    if half:
        assert_close(network.model(x, t), model(x, t), rtol=2e-2, atol=2e-2)
        assert not torch.equal(network.model(x, t), model(x, t))
    else:
        assert torch.equal(network.model(x, t), model(x, t))


def test_the_network_that_comes_with_the_library_is_as_good_as_its_card_says():
    path = checkpoint.WEIGHTS / "mnist.safetensors"
    assert path.stat().st_size < 4e6
    network = checkpoint.load_pretrained("mnist")
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == network.about
    measured = network.about["results"]["error_by_level"]
    level = measured["t"].index(500)
    errors = error_by_level(
        network.model,
        network.schedule,
        data.load("mnist", train=False),
        target=network.target,
        levels=[500],
        limit=1000,  # as the command `evaluate` does
    )
    for name in ("noise", "data", "data_floor"):
        assert errors[name].item() == pytest.approx(measured[name][level], rel=1e-3)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="name must be one of .*, got 'imagenet'"):
        checkpoint.load_pretrained("imagenet")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands in for the end of the disk: the same error path."""
    path = tmp_path / "a.safetensors"
    save(path, tensors(), ABOUT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError) as caught:
            save(path, {"large": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert_same(load(path)[0], tensors())


def test_what_is_written_is_on_the_disk_before_its_name_and_then_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        act = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, act=act, name=name: done.append(name) or act(*a))
    save(tmp_path / "a.safetensors", tensors(), ABOUT)
    assert done == ["fsync", "replace", "fsync"]


# Imports once, then forks writers: a new one for each line that it is sent.
WRITERS = """
import os, random, signal, sys, time, torch
from diffusion_lib.checkpoint import save
chance = random.Random(0)
for line in sys.stdin:
    writer = os.fork()
    if writer == 0:
        for number in range(10**6):
            save(sys.argv[1], {"numbers": torch.full((200_000,), number)}, {"number": number})
    time.sleep(chance.uniform(0.02, 0.2))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    print("killed", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, {"numbers": torch.full((200_000,), -1)}, {"number": -1})
    writers = subprocess.Popen(
        [sys.executable, "-c", WRITERS, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = []
    for _ in range(20):
        print("write", file=writers.stdin, flush=True)
        assert writers.stdout.readline() == "killed\n"
        found, about = load(path)
        assert (found["numbers"] == about["number"]).all()
        last.append(about["number"])
    writers.communicate()
    assert writers.returncode == 0 and max(last) > 0
