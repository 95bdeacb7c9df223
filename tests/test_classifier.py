import json
import os
from pathlib import Path

import pytest
import torch

from diffusion_lib import checkpoint
from diffusion_lib.classifier import (
    Classifier,
    accuracy,
    load_classifier,
    main,
    save_classifier,
    train_classifier,
)
from diffusion_lib.data import Dataset, load, to_float


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def few_digits(n=256):
    digits = load("digits")
    return Dataset("digits", digits.images[:n], digits.labels[:n])


@pytest.fixture
def mnist_test(monkeypatch):
    """MNIST's held-out images, from where tests/test_data.py looks for them."""
    if not os.environ.get("DIFFUSION_DATA") and Path("../shared/data").is_dir():
        monkeypatch.setenv("DIFFUSION_DATA", "../shared/data")
    return load("mnist", train=False)


@pytest.mark.parametrize(
    ("channels", "side", "patch"), [(1, 8, 1), (1, 32, 2), (3, 32, 2), (1, 28, 2)]
)
def test_logits_are_a_linear_map_of_the_features(channels, side, patch):
    classifier = Classifier(channels, classes=7, patch=patch).eval()
    x = images(5, channels, side, side)
    features = classifier.features(x)
    assert features.shape == (5, 64) and features.dtype == torch.float32
    assert classifier(x).shape == (5, 7)
    torch.testing.assert_close(classifier(x), classifier.head(features))
    assert features.std(0).min() > 0  # every feature tells images apart


def test_the_seed_fixes_the_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    one, same, other = Classifier(1, seed=3), Classifier(1, seed=3), Classifier(1, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_training_is_repeatable_and_learns():
    state = torch.get_rng_state()
    how = dict(epochs=8, batch_size=32)
    one, same, other = (train_classifier(few_digits(128), seed=s, **how) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    x = to_float(few_digits(20).images)
    assert torch.equal(one(x), same(x)) and not torch.equal(one(x), other(x))
    assert accuracy(one, few_digits(128)) > 0.9
    assert not one.training and not any(p.requires_grad for p in one.parameters())


def test_accuracy_is_the_share_of_right_labels():
    digits = few_digits(600)  # more than one chunk
    classifier = load_classifier("digits")
    answers = classifier(to_float(digits.images)).argmax(1)
    wrong = torch.where(torch.arange(600) < 150, (answers + 1) % 10, answers)
    assert accuracy(classifier, Dataset("digits", digits.images, answers)) == 1
    assert accuracy(classifier, Dataset("digits", digits.images, wrong)) == 0.75


def test_the_digits_classifier_is_as_good_as_its_card_says():
    classifier, held_out = load_classifier("digits"), load("digits", train=False)
    assert classifier.about["accuracy"] >= 0.96
    assert abs(accuracy(classifier, held_out) - classifier.about["accuracy"]) <= 1 / len(held_out)


def test_the_mnist_classifier_is_as_good_as_its_card_says(mnist_test):
    classifier = load_classifier("mnist")
    assert classifier.about["accuracy"] >= 0.993
    # Every fourth image, to be quick: five standard errors.
    part = Dataset("mnist", mnist_test.images[::4], mnist_test.labels[::4])
    assert abs(accuracy(classifier, part) - classifier.about["accuracy"]) < 0.006


@pytest.mark.parametrize(("name", "side", "length"), [("digits", 8, 5.635), ("mnist", 32, 8.012)])
def test_the_features_are_those_that_results_were_made_with(name, side, length):
    ramp = torch.linspace(-1, 1, side * side).view(1, 1, side, side)
    assert load_classifier(name).features(ramp).norm().item() == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_files_that_come_with_the_library(name):
    path = checkpoint.WEIGHTS / f"classifier-{name}.safetensors"
    assert path.stat().st_size < 400_000
    tensors, about = checkpoint.load(path)
    assert all(t.dtype == torch.float16 for t in tensors.values() if t.is_floating_point())
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == about
    assert about["data"].startswith(name) and about["seed"] == 0 and about["epochs"] > 0
    assert {"python", "torch", "safetensors"} <= set(about["versions"])
    classifier = load_classifier(name)
    assert classifier.about == about
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    x = images(4, 1, 32, 32)
    # The same at every call, and one image does not change the features of another.
    assert torch.equal(classifier.features(x), load_classifier(name).features(x))
    torch.testing.assert_close(classifier.features(x)[:1], classifier.features(x[:1]))


def test_features_change_smoothly():
    """Half the step changes a feature's slope by half as much: no kinks, as ReLU has."""
    classifier = load_classifier("digits").double()
    x, direction = images(1, 1, 8, 8).double(), images(1, 1, 8, 8, seed=1).double()

    def bend(step):
        f = classifier.features(torch.cat([x - step * direction, x, x + step * direction]))
        return (f[0] - 2 * f[1] + f[2]) / step**2  # the second derivative along the line

    torch.testing.assert_close(bend(1e-3), bend(5e-4), rtol=1e-3, atol=1e-5)


def test_a_saved_classifier_comes_back(tmp_path):
    path = tmp_path / "mine.safetensors"
    classifier = train_classifier(few_digits(), epochs=1)
    save_classifier(path, classifier, {"data": "few digits", "note": "β"})
    again = load_classifier(path)
    x = to_float(few_digits(50).images)
    torch.testing.assert_close(again.features(x), classifier.features(x), rtol=0, atol=0.01)
    # float16 in the file, float32 in use.
    assert checkpoint.load(path)[0]["head.weight"].dtype == torch.float16
    assert again.head.weight.dtype == torch.float32
    assert again.about["note"] == "β" and again.about["classifier"] == classifier.settings
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == again.about


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    main("digits", epochs=1, seed=5)
    classifier = load_classifier("digits")
    got = accuracy(classifier, load("digits", train=False))
    assert classifier.about["accuracy"] == got
    assert classifier.about["command"].endswith("digits 1 5")
    assert f"{got:.2%}" in capsys.readouterr().out


def test_bad_input_is_named(tmp_path):
    classifier = load_classifier("digits")
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        classifier(images(2, 3, 8, 8))
    with pytest.raises(TypeError, match="x must be float, in .*, got torch.uint8"):
        classifier.features(load("digits").images[:2])
    with pytest.raises(ValueError, match="no classifier for 'cifar' .* one of digits, mnist"):
        load_classifier("cifar")
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="holds no classifier"):
        load_classifier(path)
    with pytest.raises(FileNotFoundError):
        load_classifier(tmp_path / "none.safetensors")
