"""How many steps does a sampler need? Distances of one network's samples, from the same noise.

    the digits, a quarter of an hour on two cores    python -m benchmarks.samplers --network FOLDER
    MNIST, an hour or two                            python -m benchmarks.samplers --n 1000

Each sampler draws n images; what judges them is the Fréchet distance to the training images, in
the features of the library's classifier. Written after each, so that a stop loses one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from diffusion_lib import checkpoint, cli
from diffusion_lib.classifier import load_classifier
from diffusion_lib.data import load
from diffusion_lib.evaluation import bootstrap, features, frechet_distance
from diffusion_lib.runs import provenance

# Ancestral sampling takes all T steps whatever it is asked for.
RUNS = [("ddpm", 1000)] + [(name, n) for n in (5, 10, 20, 50) for name in ("dpm-solver", "ddim")]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.samplers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--network", default="mnist", help="pretrained name, folder or file (mnist)"
    )
    parser.add_argument("--n", type=int, default=5000, help="images by each sampler (5000)")
    parser.add_argument("--seed", type=int, default=0, help="of all noise (0)")
    parser.add_argument("--out", type=Path, default=Path("results/samplers.json"))
    given = parser.parse_args()
    network = cli.open_network(given.network, "cpu")
    name = network.about["dataset"]["name"]
    classifier = load_classifier(name)
    training, held_out = (features(classifier, load(name, train=part).images) for part in (1, 0))

    def distance(found: torch.Tensor) -> dict[str, float]:
        low, high = bootstrap(
            lambda x: frechet_distance(x, training), found, resamples=50, seed=given.seed
        )
        return {"value": frechet_distance(found, training), "low": low, "high": high}

    about = {key: network.about[key] for key in ("dataset", "made_by", "step", "unet", "target")}
    command = ["python", "-m", "benchmarks.samplers", *sys.argv[1:]]
    results = {
        "made_by": provenance() | {"command": shlex.join(command)},
        "network": about,
        "n": given.n,
        "seed": given.seed,
        "held_out": {"n": len(held_out), "distance": distance(held_out)},
        "samplers": [],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for sampler, steps in RUNS:
        drawn = cli.draw(network, given.n, sampler=sampler, steps=steps, seed=given.seed)
        found = distance(features(classifier, drawn))
        results["samplers"].append({"sampler": sampler, "steps": steps, "distance": found})
        half = (found["high"] - found["low"]) / 2
        print(f"{sampler:10} {steps:4} steps: {found['value']:.4g} ± {half:.2g}", flush=True)
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        checkpoint.write_atomically(given.out, text.encode())


if __name__ == "__main__":
    main()
