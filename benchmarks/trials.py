"""Which network makes the most of a few minutes on a CPU? Small changes, one at a time.

    those still missing    python -m benchmarks.trials
    some of them           python -m benchmarks.trials --only base,deeper
    does it work at all    python -m benchmarks.trials --seconds 15 --samples 100 --only base
                           --out runs/trials.json

Every variant trains on MNIST for the same processor time, on one thread, which other work on the
machine disturbs least. Two numbers judge it: the loss on held-out images, and the Fréchet
distance of its samples to the training images, in the features of the library's classifier.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import forward_flop
from diffusion_lib import checkpoint
from diffusion_lib.classifier import load_classifier
from diffusion_lib.data import Dataset, load, to_uint8
from diffusion_lib.evaluation import features, frechet_distance
from diffusion_lib.runs import provenance
from diffusion_lib.sampling import dpm_solver
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import TrainConfig, held_out_loss, train
from diffusion_lib.unet import PRESETS, UNet

BASE = PRESETS["mnist-cpu"] | dict(batch_size=32, learning_rate=2e-3)

# What differs from BASE, and what was expected of it.
VARIANTS = {
    "base": (dict(), ""),
    "patch 1": (dict(patch=1), "four times the FLOPs at the finest level: too few updates"),
    "patch 4": (dict(patch=4), "twice the updates, but strokes finer than a patch suffer"),
    "wider below": (dict(widths=(64, 128, 128)), "more memory for shapes at twice the price"),
    "narrow": (dict(widths=(32, 64, 64)), "cheap, but 32 channels leave the CPU half idle"),
    "two levels": (dict(widths=(64, 64)), "nearly as dear, and blind to the whole digit"),
    "deeper": (dict(blocks=2), "better a step, half the steps"),
    "batch 16": (dict(batch_size=16), "too noisy at this learning rate: worse"),
    "batch 64": (dict(batch_size=64), "half the updates: worse this early"),
    "batch 128": (dict(batch_size=128), "a quarter of the updates: worse still"),
    "lr 1e-3": (dict(learning_rate=1e-3), "slower"),
    "lr 4e-3": (dict(learning_rate=4e-3), "faster, if it does not break"),
}


def trial(settings: dict[str, Any], seconds: float, samples: int) -> dict[str, Any]:
    """Train one variant from scratch for so much processor time, and judge it."""
    settings = dict(BASE, **settings)
    batch_size, learning_rate = settings.pop("batch_size"), settings.pop("learning_rate")
    schedule, dataset = NoiseSchedule.cosine(), load("mnist")
    test = load("mnist", train=False)
    held_out = Dataset("held out", test.images[:2000], test.labels[:2000])

    def states(steps):
        config = TrainConfig(steps, batch_size, learning_rate, average_decay=0.99)
        return train(UNet(**settings), schedule, dataset, config)

    # The learning rate falls over exactly the steps that the time allows, so count them first.
    for state in states(12):
        if state.step == 4:
            start = time.process_time()
    steps = max(20, round(seconds * 8 / (time.process_time() - start)))
    start = time.process_time()
    *_, last = states(steps)
    used = time.process_time() - start

    model = last.average
    x_T = torch.randn(samples, *dataset.shape, generator=torch.Generator().manual_seed(0))
    drawn = []
    for part in x_T.split(100):
        *_, end = dpm_solver(model, schedule, part, steps=20, target="velocity")
        drawn.append(to_uint8(end.x_t))
    classifier = load_classifier("mnist")
    real, ours = (features(classifier, images) for images in (dataset.images, torch.cat(drawn)))
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "gflop": forward_flop(model, dataset.shape) / 1e9,
        "steps": steps,
        "processor_seconds": used,
        "images_per_second": steps * batch_size / used,
        "held_out_loss": held_out_loss(model, schedule, held_out, "velocity").item(),
        "frechet": frechet_distance(ours, real),
    }


def table(results: dict[str, Any]) -> str:
    """What was tried, expected and measured, in Markdown."""
    lines = [
        "| variant | expected | GFLOP | images/s | updates | held-out loss | distance |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (name for name in VARIANTS if name in results["trials"]):
        of = results["trials"][name]
        lines.append(
            f"| {name} | {of['expected'] or '–'} | {of['gflop']:.2f} | "
            f"{of['images_per_second']:.0f} | {of['steps']:,} | {of['held_out_loss']:.4f} | "
            f"{of['frechet']:.2f} |"
        )
    made_by = next(iter(results["trials"].values()))["made_by"]
    told = (
        f"Each trained for {results['seconds']:g} s of processor time on one thread of {{device}}, "
        f"torch {{versions[torch]}}, seed 0; the Fréchet distance of {results['samples']} samples "
        "to the training images, one training each."
    )
    return "\n".join([*lines, "", told.format(**made_by), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900, help="of processor time for each")
    parser.add_argument("--samples", type=int, default=1000, help="drawn from each")
    parser.add_argument("--only", default=",".join(VARIANTS), help="names, with commas between")
    parser.add_argument("--out", type=Path, default=Path("results/trials.json"))
    given = parser.parse_args()
    unknown = set(given.only.split(",")) - set(VARIANTS)
    if unknown:
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    results = {"seconds": given.seconds, "samples": given.samples, "trials": {}}
    if given.out.exists():
        found = json.loads(given.out.read_text(encoding="utf-8"))
        if (found["seconds"], found["samples"]) != (given.seconds, given.samples):
            parser.error(f"{given.out} holds trials of another length: name another with --out")
        results = found
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.only.split(","):
        if name in results["trials"]:
            continue
        changes, expected = VARIANTS[name]
        result = trial(changes, given.seconds, given.samples)
        command = shlex.join(["python", "-m", "benchmarks.trials", *sys.argv[1:]])
        about = {"settings": BASE | changes, "expected": expected}
        made_by = {"made_by": provenance() | {"command": command}}
        results["trials"][name] = about | made_by | result
        print(
            f"{name:12} {result['gflop']:.3f} GFLOP {result['images_per_second']:4.0f} images/s "
            f"loss {result['held_out_loss']:.4f} distance {result['frechet']:.2f}",
            flush=True,
        )
        # After each, so that a stop loses one.
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        checkpoint.write_atomically(given.out, text.encode())
        checkpoint.write_atomically(given.out.with_suffix(".md"), table(results).encode())


if __name__ == "__main__":
    main()
