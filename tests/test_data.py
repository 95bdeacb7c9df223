"""Images against their sources: scikit-learn's digits, the raw bytes of MNIST's files."""

import os
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torchvision import datasets

from diffusion_lib.data import Dataset, load, to_float, to_uint8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def read_idx(path):
    """The numbers in an IDX file: magic number, sizes, then bytes, all big-endian."""
    raw = path.read_bytes()
    zeros, kind, ndim = struct.unpack(">HBB", raw[:4])
    assert (zeros, kind) == (0, 8)  # unsigned bytes
    shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_mnist(folder, n_train=5, n_test=3, seed=0):
    """Four files such as torchvision looks for, with random images."""
    draw = np.random.default_rng(seed)
    for part, n in (("train", n_train), ("t10k", n_test)):
        write_idx(folder / f"{part}-images-idx3-ubyte", draw.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", draw.integers(0, 10, n))


def small(n=10, **changes):
    """n different 1×2×2 images; the pixels of image i are i, its label 2i."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2)
    return Dataset(**{"name": "x", "images": images, "labels": 2 * torch.arange(n), **changes})


def test_digits_are_scikit_learns():
    train, test, theirs = load("digits"), load("digits", train=False), load_digits()
    assert (len(train), len(test)) == (1545, 252)
    images = torch.cat([train.images, test.images])
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8
    # Their grey levels are 0 … 16; ours 0 … 255, from black to white.
    levels = np.array([round(k * 255 / 16) for k in range(17)])
    assert (images[:, 0].numpy() == levels[theirs.images.astype(int)]).all()
    assert (torch.cat([train.labels, test.labels]).numpy() == theirs.target).all()
    assert images.min() == 0 and images.max() == 255
    assert train.name == "digits" and train.shape == (1, 8, 8)


def test_digits_need_no_folder_and_no_torchvision(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    assert len(load("digits")) == 1545


def test_bytes_survive_the_way_to_floats_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    x = to_float(every)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x.diff(), torch.full((255,), 2 / 255), rtol=1e-4, atol=0)
    assert torch.equal(to_uint8(x), every)
    # As far as half a level away.
    assert torch.equal(to_uint8((x + 0.9 / 255).clamp(max=1)), every)
    assert torch.equal(to_uint8((x - 0.9 / 255).clamp(min=-1)), every)


def test_what_lies_outside_is_clipped_not_wrapped():
    x = torch.tensor([[-9.0, -1.001], [1.001, 300.0]])
    assert to_uint8(x).tolist() == [[0, 0], [255, 255]]


def test_batches_are_reproducible_and_leave_the_global_state_alone():
    data, state = load("digits"), torch.get_rng_state()
    images, labels = data.batch(64, generator(3))
    again, labels_again = data.batch(64, generator(3))
    other, _ = data.batch(64, generator(4))
    assert images.shape == (64, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (64,) and labels.dtype == torch.int64
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert not torch.equal(images, other)
    assert torch.equal(torch.get_rng_state(), state)
    draw = generator(3)
    assert not torch.equal(data.batch(64, draw)[0], data.batch(64, draw)[0])


def test_batches_are_drawn_evenly_and_with_replacement():
    data, n = small(10), 20_000
    images, _ = data.batch(n, generator())
    counts = torch.bincount(to_uint8(images)[:, 0, 0, 0].long(), minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    # Draws do not know of one another: an image follows itself one time in ten.
    rows = to_uint8(images)[:, 0, 0, 0]
    repeats = (rows[1:] == rows[:-1]).double().mean().item()
    assert repeats == pytest.approx(0.1, abs=4 * (0.09 / n) ** 0.5)


def test_labels_come_along_with_their_images():
    images, labels = small(100).batch(1000, generator())
    assert torch.equal(labels, 2 * to_uint8(images)[:, 0, 1, 1].long())


def test_batches_are_drawn_from_floats_in_range():
    images, _ = load("digits").batch(500, generator())
    assert images.min() == -1 and images.max() == 1


@pytest.fixture(scope="module")
def mnist_root():
    """The folder that holds MNIST: DIFFUSION_DATA, else ../shared/data, else a download."""
    if not os.environ.get("DIFFUSION_DATA") and Path("../shared/data").is_dir():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DIFFUSION_DATA", "../shared/data")
            yield Path("../shared/data")
    else:
        given = os.environ.get("DIFFUSION_DATA")
        yield Path(given) if given else Path.home() / ".cache" / "diffusion_lib"


@pytest.mark.parametrize(
    ("train", "prefix", "n"), [(True, "train", 60_000), (False, "t10k", 10_000)]
)
def test_mnist_is_its_files_padded(mnist_root, train, prefix, n):
    data = load("mnist", train=train)
    raw = read_idx(mnist_root / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(mnist_root / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte")
    assert raw.shape == (n, 28, 28)
    assert data.images.shape == (n, 1, 32, 32) and data.shape == (1, 32, 32)
    assert (data.images[:, 0, 2:30, 2:30].numpy() == raw).all()
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[2:30, 2:30] = False
    assert (data.images[:, 0, frame] == 0).all()
    assert (data.labels.numpy() == labels).all() and data.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_a_given_root_wins_over_the_environment(tmp_path, monkeypatch, name, folder):
    write_mnist(tmp_path / "given" / folder / "raw", seed=1)
    write_mnist(tmp_path / "environment" / folder / "raw", seed=2)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path / "environment"))
    for root, where in ((tmp_path / "given", "given"), (None, "environment")):
        for train, prefix, n in ((True, "train", 5), (False, "t10k", 3)):
            data = load(name, root=root, train=train)
            raw = tmp_path / where / folder / "raw"
            wanted = read_idx(raw / f"{prefix}-images-idx3-ubyte")
            assert data.name == name and len(data) == n
            assert (data.images[:, 0, 2:30, 2:30].numpy() == wanted).all()
            labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte")
            assert (data.labels.numpy() == labels).all()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("by", ["root", "environment"])
def test_a_folder_without_the_files_says_what_to_do(tmp_path, monkeypatch, name, by):
    def refuse(*arguments, **settings):
        raise AssertionError("a given folder is never filled from the network")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path if by == "environment" else "elsewhere"))
    with pytest.raises(FileNotFoundError) as caught:
        load(name, root=tmp_path if by == "root" else None)
    message = str(caught.value)
    assert name in message and str(tmp_path) in message
    assert "root=" in message and "DIFFUSION_DATA" in message
    assert 'load("digits") needs neither' in message
    assert {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}[name] in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(cut=100), "are damaged or not all there"),
        (dict(cut=10 * 784 + 10), "are damaged or not all there"),
        (dict(labels=9), r"as many labels: images \(10, 28, 28\), labels \(9,\)"),
        (dict(side=30), r"not those of 28×28 .* images \(10, 30, 30\)"),
    ],
    ids=["cut short", "header cut", "a label short", "of another size"],
)
def test_files_that_are_not_what_they_should_be_are_named(tmp_path, changes, message):
    """Each in the format of MNIST, with ten black images."""
    how = {"labels": 10, "side": 28, "cut": 0, **changes}
    images = struct.pack(">4i", 2051, 10, how["side"], how["side"]) + bytes(10 * how["side"] ** 2)
    labels = struct.pack(">2i", 2049, how["labels"]) + bytes(how["labels"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images[: len(images) - how["cut"]])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match=message) as caught:
        load("mnist", root=tmp_path)
    assert str(raw) in str(caught.value)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*arguments, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.delenv("DIFFUSION_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist")
    message = str(caught.value)
    assert "no route to host" in message and "root=" in message
    assert "DIFFUSION_DATA" in message and 'load("digits") needs neither' in message


@pytest.mark.parametrize("name", ["cifar10", "MNIST", ""])
def test_an_unknown_name_is_named(name):
    with pytest.raises(ValueError, match=f"one of digits, mnist, fashion-mnist, got '{name}'"):
        load(name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(images=torch.zeros(10, 1, 2, 2)), TypeError, "images must be uint8.*torch.float32"),
        (dict(images=torch.zeros(10, 2, 2).byte()), ValueError, r"images .*got \(10, 2, 2\)"),
        (dict(images=torch.zeros(0, 1, 2, 2).byte()), ValueError, r"N >= 1, got \(0, 1, 2, 2\)"),
        (dict(labels=torch.zeros(10)), TypeError, "labels must be int64, got torch.float32"),
        (dict(labels=torch.zeros(10).int()), TypeError, "labels must be int64, got torch.int32"),
        (dict(labels=torch.zeros(9).long()), ValueError, r"labels .*\(10,\), got \(9,\)"),
        (dict(labels=torch.zeros(10, 1).long()), ValueError, r"\(10,\), got \(10, 1\)"),
    ],
)
def test_bad_images_and_labels_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        small(**changes)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_only_bytes_become_floats(kind):
    with pytest.raises(TypeError, match=f"images must be uint8.*got {kind}"):
        to_float(torch.zeros(2, 2, dtype=kind))
