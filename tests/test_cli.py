"""The commands, from the shell's side: a network trained, drawn from, measured, exported."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from diffusion_lib import checkpoint, cli
from diffusion_lib.data import load
from diffusion_lib.evaluation import error_by_level, nearest
from diffusion_lib.runs import PRESETS, latest, seconds

SHORT = "--widths 8 16 --steps 30 --batch-size 16 --T 100 --checkpoint-every 20"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of the digits, started as a reader would start it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = subprocess.run(
        [sys.executable, "-m", "diffusion_lib", "train", "--out", folder, *SHORT.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "error of x̂₀ on 256 held-out images" in result.stdout
    return folder


def test_a_run_leaves_checkpoints_logs_and_pictures(folder):
    names = sorted(path.name.split(".vm")[0] for path in folder.iterdir())
    assert [name for name in names if not name.startswith("events")] == [
        "checkpoint-00000020.safetensors",
        "checkpoint-00000030.safetensors",
        "metrics.jsonl",
        "samples-00000030.png",
    ]
    assert sum(name.startswith("events.out.tfevents") for name in names) == 1
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [10, 20, 30]
    assert log[0]["started"]["run"]["training"]["steps"] == 30
    errors = next(line["held_out"] for line in log if "held_out" in line)
    assert errors["t"] == [1, 10, 25, 50, 75, 100]
    assert all(a <= b for a, b in zip(errors["data_floor"], errors["data"], strict=True))
    # Of the averaged network, which is what a checkpoint is opened as.
    model, schedule, target, _ = cli.open_network(str(folder))
    score = dict(target=target, levels=errors["t"], limit=256)
    measured = error_by_level(model, schedule, load("digits", train=False), **score)
    assert errors["data"] == pytest.approx(measured["data"].tolist(), rel=1e-4)


def test_the_picture_of_a_run_is_what_sample_draws(folder, tmp_path):
    """Both are 64 images of the averaged network, in 20 steps from the same noise."""
    cli.main(["sample", "--network", str(folder), "--out", str(tmp_path / "a.png")])
    ours, theirs = imread(tmp_path / "a.png"), imread(folder / "samples-00000030.png")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2 / 255)


def test_samples_are_a_picture_or_an_array(folder, tmp_path):
    cli.sample(str(folder), tmp_path / "new" / "a.png", n=7, steps=3)
    assert (tmp_path / "new" / "a.png").stat().st_size > 500
    for sampler in ("dpm-solver", "ddim", "ddpm"):
        cli.sample(str(folder), tmp_path / "a.npy", n=5, sampler=sampler, steps=3, seed=1)
        images = np.load(tmp_path / "a.npy")
        assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8 and images.std() > 10
        network = cli.open_network(str(folder))
        drawn = cli.draw(network, 5, sampler=sampler, steps=3, seed=1)
        assert np.array_equal(images, drawn.numpy())
    with pytest.raises(ValueError, match=r"out must end in .png or .npy, got 'a.gif'"):
        cli.sample(str(folder), cli.Path("a.gif"))


def test_a_seed_draws_the_same_images_in_batches_of_any_size(folder):
    network = cli.open_network(str(folder))
    all_at_once = cli.draw(network, 9, steps=3, seed=4)
    in_parts = cli.draw(network, 9, steps=3, seed=4, batch_size=4)
    # Rounding to 256 levels may fall to either side.
    assert (all_at_once.int() - in_parts.int()).abs().max() <= 1
    assert not torch.equal(all_at_once, cli.draw(network, 9, steps=3, seed=5))


def test_what_is_exported_is_the_averaged_network(folder, tmp_path):
    out = tmp_path / "digits.safetensors"
    cli.export(str(folder), out)
    tensors, about = checkpoint.load(out)
    assert not any(name.startswith(("optimizer", "average")) for name in tensors)
    average = checkpoint.under("average", checkpoint.load(latest(folder))[0])
    assert all(torch.equal(tensors[f"model.{name}"], average[name]) for name in average)
    assert about["step"] == 30 and about["run"]["training"]["seed"] == 0
    # Its card says the same as the file itself.
    assert json.loads(out.with_suffix(".json").read_text()) == about
    assert about["made_by"]["command"].endswith(f"train --out {folder} {SHORT}")
    assert 0 < about["training_seconds"] < 600
    whole = out.stat().st_size
    cli.export(str(folder), out, half=True)
    assert out.stat().st_size < 0.62 * whole
    assert torch.equal(
        cli.draw(cli.open_network(str(folder)), 4, steps=2).float().round(decimals=-2),
        cli.draw(cli.open_network(str(out)), 4, steps=2).float().round(decimals=-2),
    )


def test_all_measures_are_written_with_what_made_them(folder, tmp_path, capsys):
    out = tmp_path / "results" / "digits.json"
    how = {"n": 100, "sampler": "ddim", "steps": 3, "seed": 1}
    cli.evaluate(str(folder), out, **how)
    results = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == results
    cli.export(str(folder), tmp_path / "a.safetensors", results=out)
    assert cli.open_network(str(tmp_path / "a.safetensors")).about["results"] == results
    assert results["samples"] == how
    all_steps = cli.measure(cli.open_network(str(folder)), n=100, sampler="ddpm", steps=3)
    assert next(all_steps)[1]["steps"] == 100
    made_by = results["made_by"]
    assert made_by["versions"]["torch"] == torch.__version__ and made_by["device"]
    quality, bits = results["quality"], results["bits_per_dim"]
    assert quality["samples"] == 100
    distances, _ = nearest(cli.draw(cli.open_network(str(folder)), **how), load("digits").images)
    assert quality["nearest"]["value"] == pytest.approx(distances.median().item(), rel=1e-6)
    assert quality["frechet"]["value"] > quality["frechet_floor"]["value"] > 0
    for bound in (quality["frechet"], bits["variational"], bits["information"]):
        assert bound["low"] < bound["value"] < bound["high"]


def test_every_option_is_explained_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--help"])
    assert caught.value.code == 0
    # Long lines wrap inside a frame.
    text = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
    names = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", text)) - {"help"}
    training = PRESETS["cpu-minute"].training.__dataclass_fields__
    settings = PRESETS["cpu-minute"].__dataclass_fields__
    wanted = {n.replace("_", "-") for n in (*training, *settings) if n != "training"} | {"preset"}
    assert names == wanted
    assert text.count("(default: ") == len(wanted)


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        ([], "cpu-minute"),
        (["--data", "digits"], "cpu-minute"),
        (["--data", "mnist"], "mnist-cpu"),
        (["--data=mnist", "--preset", "mnist-gpu"], "mnist-gpu"),
    ],
)
def test_the_preset_fits_the_data_and_the_machine(monkeypatch, arguments, preset):
    monkeypatch.setattr(cli, "pick_device", lambda name: "cpu")
    seen = []
    monkeypatch.setattr(cli, "run", seen.append)
    cli.main(["train", "--seed", "3", "--out", "here", *arguments])
    assert seen[0].training.steps == PRESETS[preset].training.steps
    assert seen[0].widths == PRESETS[preset].widths
    assert seen[0].training.seed == 3 and str(seen[0].out) == "here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--network", "nowhere.safetensors", "--out", "a.png"], "nowhere.safetensors"),
        (["sample", "--network", "imagenet", "--out", "a.png"], "name must be one of"),
        (["export", "--network", "mnist", "--out", "a.pt"], "out must end in .safetensors"),
        (["train", "--data", "mnist", "--root", "nowhere"], "mnist is not in nowhere"),
        (["evaluate", "--network", "mnist", "--root", "nowhere"], "mnist is not in nowhere"),
    ],
)
def test_an_error_is_one_plain_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert str(caught.value).startswith("error: ") and message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_one_plain_line(monkeypatch):
    def diverge(config):
        raise FloatingPointError("the loss became nan")

    monkeypatch.setattr(cli, "run", diverge)
    with pytest.raises(SystemExit, match="^error: the loss became nan$"):
        cli.main(["train"])


def test_a_setting_out_of_range_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--batch-size", "0"])
    assert caught.value.code == 2
    assert "batch_size must be positive" in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint-"):
        cli.open_network(str(tmp_path))


def test_the_time_of_training_is_summed_over_starts(tmp_path):
    """Ten steps of 8 images at 40 images a second, then ten at 20."""
    start = {"started": {"run": {"training": {"batch_size": 8}}}}
    lines = [
        {"step": 0} | start,
        {"step": 10, "images_per_second": 40.0},
        {"step": 10} | start,
        {"step": 20, "images_per_second": 20.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds(path) == pytest.approx(10 * 8 / 40 + 10 * 8 / 20)
