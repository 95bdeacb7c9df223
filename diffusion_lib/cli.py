"""The library from the shell: `python -m diffusion_lib COMMAND --help`.

Each command is a function that a notebook can call as well.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib.image
import numpy as np
import torch
import tyro
from tqdm import tqdm

from diffusion_lib import checkpoint, evaluation, sampling
from diffusion_lib.checkpoint import Network
from diffusion_lib.classifier import load_classifier
from diffusion_lib.data import load, to_uint8
from diffusion_lib.figures import mosaic
from diffusion_lib.runs import PRESETS, RunConfig, latest, pick_device, provenance, run, seconds

SamplerName = Literal["dpm-solver", "ddim", "ddpm"]


def open_network(network: str, device: str = "auto") -> Network:
    """The network named by what the commands take: a pretrained one ("mnist"), the folder of
    a run, or a file. device: as `pick_device` takes it. Raises as `checkpoint.load_network`, and
    FileNotFoundError.
    """
    path = Path(network)
    if path.is_dir():
        path = latest(path) or path / "checkpoint-*.safetensors"
    elif not path.exists() and path.suffix == "":
        return checkpoint.load_pretrained(network, pick_device(device))
    return checkpoint.load_network(path, pick_device(device))


def draw(
    network: Network,
    n: int,
    *,
    sampler: SamplerName = "dpm-solver",
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 500,
) -> torch.Tensor:
    """n images of a network as uint8, (n, C, H, W), on the CPU.

    sampler: one of those in `sampling`. steps: evaluations of the network for each image; DDPM
    always takes all T. seed: of the noise. batch_size: images drawn at once. Shows a bar in a
    terminal, if there is more than one batch. Raises ValueError for n < 1, and as the sampler.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 image, got {n}")
    model, schedule, target, about = network
    device = schedule.beta.device
    shape = about["dataset"]["shape"]
    # On the CPU, so that the same seed starts from the same noise on every device.
    x_T = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    walk = {
        "dpm-solver": partial(sampling.dpm_solver, steps=steps),
        "ddim": partial(sampling.ddim, steps=steps),
        "ddpm": partial(sampling.ddpm, generator=torch.Generator(device).manual_seed(seed)),
    }[sampler]
    images = []
    parts = x_T.split(batch_size)
    # disable=None: a bar only where someone watches.
    watched = {"unit": "batch", "leave": False, "disable": None if len(parts) > 1 else True}
    for part in tqdm(parts, "drawing", **watched):
        for last in walk(model, schedule, part.to(device), target=target):  # noqa: B007
            pass  # not kept: a thousand states of a batch are gigabytes
        images.append(to_uint8(last.x_t).cpu())
    return torch.cat(images)


def sample(
    network: str,
    out: Path,
    n: int = 64,
    sampler: SamplerName = "dpm-solver",
    steps: int = 20,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Draw images out of noise.

    Args:
        network: a pretrained network ("mnist"), the folder of a run, or a file of weights.
        out: a .png picture of all of them in a square, or a .npy array, uint8 (n, C, H, W).
        n: number of images.
        sampler: DPM-Solver++(2M), DDIM, or DDPM's ancestral sampling.
        steps: evaluations of the network for each image; "ddpm" always takes all T.
        seed: of the noise.
        device: "auto" takes an accelerator if there is one; or "cpu", "cuda", "mps".

    Raises:
        ValueError: n below 1, steps out of range, or an out that ends otherwise.
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"out must end in .png or .npy, got {str(out)!r}")
    images = draw(open_network(network, device), n, sampler=sampler, steps=steps, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, images.numpy())
    else:
        columns = math.ceil(n**0.5)
        blank = -n % columns
        filled = torch.cat([images, images.new_zeros(blank, *images.shape[1:])])
        picture = mosaic(filled.float() / 127.5 - 1, columns)[0, 0].numpy()
        matplotlib.image.imsave(out, picture, cmap="gray", vmin=-1, vmax=1)
    print(f"{n} images in {out}")


def export(network: str, out: Path, half: bool = False, results: Path | None = None) -> None:
    """Write the network alone, without what training needs, and its card.

    The card, in JSON beside the file, and in the file itself, says how the network came to be.

    Args:
        network: the folder of a run, or one of its checkpoints.
        out: the new file, ending in .safetensors.
        half: weights in float16: half the size.
        results: what `evaluate` wrote, for the card.

    Raises:
        ValueError: an out that ends otherwise.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"out must end in .safetensors, got {str(out)!r}")
    model, schedule, target, about = open_network(network, "cpu")
    log = Path(network) / "metrics.jsonl"
    if log.exists():
        about["training_seconds"] = round(seconds(log))
    if results is not None:
        about["results"] = json.loads(results.read_text(encoding="utf-8"))
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_network(out, model, schedule, target, about, half=half)
    checkpoint.save_card(out, about)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def evaluate(
    network: str,
    out: Path | None = None,
    n: int = 10_000,
    sampler: SamplerName = "dpm-solver",
    steps: int = 20,
    seed: int = 0,
    root: Path | None = None,
    device: str = "auto",
) -> None:
    """Measure how good a network is, on the images that it was not trained on.

    Args:
        network: a pretrained network ("mnist"), the folder of a run, or a file of weights.
        out: a .json file for the results; without it they are only printed.
        n: number of samples to draw for the Fréchet distance, precision and recall.
        sampler: DPM-Solver++(2M), DDIM, or DDPM's ancestral sampling.
        steps: evaluations of the network for each sample; "ddpm" always takes all T.
        seed: of all noise.
        root: folder with torchvision's files; without it $DIFFUSION_DATA, then the user's cache.
        device: "auto" takes an accelerator if there is one; or "cpu", "cuda", "mps".
    """
    parts = measure(
        open_network(network, device), n=n, sampler=sampler, steps=steps, seed=seed, root=root
    )
    results = dict(tqdm(parts, "measuring", total=5, unit="part", leave=False, disable=None))
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(out, text.encode())


def measure(
    network: Network,
    *,
    n: int = 10_000,
    sampler: SamplerName = "dpm-solver",
    steps: int = 20,
    seed: int = 0,
    root: Path | None = None,
) -> Iterator[tuple[str, Any]]:
    """All measures of `evaluation` on one network, by name, ready for JSON, with what they need
    to be repeated; each as soon as it is there, which takes minutes on a CPU. The features are
    those of the classifier of the network's own data set.

    n, sampler, steps: as `draw` takes them. seed: of all noise. root: as `data.load` takes it.
    Raises ValueError for an n that does not exceed the number of features, and as `data.load`.
    """
    model, schedule, target, about = network
    name, device = about["dataset"]["name"], schedule.beta.device
    train_set, test_set = (
        load(name, train=part, root=root, device=device) for part in (True, False)
    )
    classifier = load_classifier(name, device)
    if n <= classifier.head.in_features:
        raise ValueError(
            f"n must exceed the classifier's {classifier.head.in_features} features, got {n}"
        )
    shares = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
    levels = sorted({max(1, round(schedule.T * share)) for share in shares})
    errors = evaluation.error_by_level(
        model, schedule, test_set, target=target, levels=levels, seed=seed, limit=1000
    )
    drawn = {"n": n, "sampler": sampler, "seed": seed}
    yield "samples", drawn | {"steps": schedule.T if sampler == "ddpm" else steps}
    yield "error_by_level", {key: values.tolist() for key, values in errors.items()}
    yield (
        "bits_per_dim",
        evaluation.bits_per_dim(model, schedule, test_set, target=target, seed=seed),
    )
    samples = draw(network, n, sampler=sampler, steps=steps, seed=seed)
    quality = evaluation.sample_quality(samples, train_set, test_set, classifier, seed=seed)
    yield "quality", quality
    yield "made_by", provenance(device)


def main(argv: list[str] | None = None) -> None:
    """Run the command in `argv`, by default the shell's. Errors end it with one plain line."""
    argv = sys.argv[1:] if argv is None else argv
    preset = _preset(argv)

    def train(
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = PRESETS[preset],
        preset: Literal["cpu-minute", "mnist-cpu", "mnist-gpu"] = preset,
    ) -> None:
        """Train a network in a folder, or go on with the run that is there.

        The defaults below are those of the preset. Without one it is "cpu-minute" for the
        digits and "mnist-gpu" or "mnist-cpu", whichever fits this machine, for larger images.

        Args:
            preset: the set of defaults.
        """
        network = run(config)
        if network and network.about["step"] < config.training.steps:
            sys.exit(f"stopped at step {network.about['step']}; the same command goes on from it")

    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "train": train,
                "sample": sample,
                "evaluate": evaluate,
                "export": export,
            },
            prog="python -m diffusion_lib",
            description=__doc__,
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        )
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def _preset(argv: list[str]) -> str:
    """The preset whose defaults `train` starts from: looked up before the rest is read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--device", default="auto")
    given, _ = parser.parse_known_args(argv)
    if given.preset:
        return given.preset
    if given.data == "digits":
        return "cpu-minute"
    return "mnist-gpu" if pick_device(given.device).startswith("cuda") else "mnist-cpu"
