"""Write the table and the plot that README and chapters show, from what `peers` measured.

python -m benchmarks.report    results/peers.json → results/peers.md, peers.png and the README
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.environment import ROOT, write_atomically
from diffusion_lib import figures

TITLES = {
    "ours": "**this library**",
    "diffusers": "diffusers",
    "lucidrains": "denoising-diffusion-pytorch",
    "smalldiffusion": "smalldiffusion",
    "post": "the post's, mended",
}
BEGIN = "<!-- from results/peers.json, by python -m benchmarks.report -->\n"
END = "<!-- end -->"
RECIPES = {"common": "common recipe", "own": "its own recipe"}


def table(result: dict[str, Any]) -> str:
    """The networks side by side, in Markdown; what was not measured is a dash."""
    header = [
        "network",
        "parameters",
        "GFLOP forward",
        "images/s trained",
        "share of peak",
        "memory",
        "images/s drawn",
        *(f"distance, {title}" for title in RECIPES.values()),
    ]
    rows = []
    for name, network in result["networks"].items():
        speed, quality = network.get("speed"), network.get("quality", {})
        row = [TITLES[name]]
        if speed:
            row += [
                f"{speed['parameters'] / 1e6:.1f} M",
                f"{speed['gflop']:.2f}",
                _spread(speed["training"]),
                _spread(speed["share"], 100, " %"),
                f"{speed['memory_mib']['training'] / 1024:.1f} GiB",
                _spread(speed["sampling"]),
            ]
        else:
            row += ["–"] * 6
        for recipe in RECIPES:
            row.append(_distance(quality[recipe]["distance"]) if recipe in quality else "–")
        rows.append(row)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def summary(result: dict[str, Any]) -> str:
    """What the table was measured on, and what it comes to, in a few sentences."""
    device, settings = result["device"], result["settings"]
    lines = []
    best = best_distances(result)
    peers = {name: distance for name, distance in best.items() if name != "ours"}
    if "ours" in best and peers:
        name = min(peers, key=peers.get)
        lines.append(
            f"After {settings['minutes']:g} minutes of training each, the Fréchet distance of "
            f"this library's network is {best['ours']:.3g}, {best['ours'] / peers[name]:.2f} "
            f"times that of the best peer ({TITLES[name]}, {peers[name]:.3g})."
        )
        spent = [
            of["seconds"] / 60
            for network in result["networks"].values()
            for of in network.get("quality", {}).values()
        ]
        lines.append(
            f"The trainings really took {min(spent):.1f} to {max(spent):.1f} minutes: the number "
            "of steps is set beforehand, from the speed in a short pilot."
        )
    if "floor" in result:
        lines.append(
            f"The floor is {_distance(result['floor'])}: as many held-out test images. The "
            "distance is measured in the features of the library's own MNIST classifier, between "
            f"{settings['samples']:,} samples, drawn with DPM-Solver++(2M) in "
            f"{settings['steps']} steps, and all training images; ± is a 95 % interval for the "
            "chance in the samples, for one training each."
        )
    if "peak_gflops" in result:
        batch = {n["speed"]["batch_size"] for n in result["networks"].values()}
        lines.append(
            f"Speeds are medians of {settings['rounds']} interleaved rounds, with the lowest and "
            f"the highest, at each network's fastest batch size ({_list(sorted(batch))}); the "
            f"measured peak is {_spread(result['peak_gflops'])} GFLOP/s in float32, and training "
            f"is counted as three forward passes. A drawn image takes {settings['steps']} "
            "evaluations. Memory is the largest of a process that trains with 64 images a step, "
            "Python, torch and the data included."
        )
    told = f"{device['cpu']}, {device['cores']} core{'s' * (device['cores'] > 1)}"
    if "versions" in result:
        told += "; " + ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    lines.append(f"{told}; seed {result['seed']}; commit {result['commit']}.")
    lines.append(f"Measured with `{result['command']}`.")
    return "\n".join(lines)


def best_distances(result: dict[str, Any]) -> dict[str, float]:
    """For each network the distance that the better of its recipes reached."""
    return {
        name: min(of["distance"]["value"] for of in network["quality"].values())
        for name, network in result["networks"].items()
        if network.get("quality")
    }


def plot(result: dict[str, Any]) -> Figure:
    """Fréchet distance of each network by either recipe, on a logarithmic axis, and the floor."""
    figure, (ax,) = figures.axes(height=2.4)
    names = [name for name, network in result["networks"].items() if network.get("quality")]
    markers = dict(zip(RECIPES, ("o", "D"), strict=True))
    for recipe, marker in markers.items():
        points = [
            (result["networks"][name]["quality"][recipe]["distance"]["value"], place)
            for place, name in enumerate(names)
            if recipe in result["networks"][name]["quality"]
        ]
        if points:
            distances, places = zip(*points, strict=True)
            ax.plot(distances, places, marker, linestyle="none", label=RECIPES[recipe])
    if "floor" in result:
        ax.axvline(
            result["floor"]["value"], color="black", linestyle=":", label="held-out test images"
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), [TITLES[name].strip("*") for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    minutes = result["settings"]["minutes"]
    ax.set_xlabel(f"Fréchet distance after {minutes:g} minutes of training (left is better)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def fill(readme: str, text: str) -> str:
    """The README with `text` between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}"


def _spread(values: dict[str, float], factor: float = 1, unit: str = "") -> str:
    median, low, high = (_short(factor * values[key]) for key in ("median", "low", "high"))
    return f"{median}{unit} ({low}–{high})"


def _distance(of: dict[str, float]) -> str:
    return f"{_short(of['value'])} ± {_short((of['high'] - of['low']) / 2, 2)}"


def _short(value: float, digits: int = 3) -> str:
    """So many digits, in plain notation."""
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _list(values: list[int]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    measured = ROOT / "results" / "peers.json"
    parser.add_argument("results", nargs="?", type=Path, default=measured)
    path = parser.parse_args().results
    result = json.loads(path.read_text(encoding="utf-8"))
    text = f"{table(result)}\n\n{summary(result)}\n"
    write_atomically(path.with_suffix(".md"), text)
    written = [path.with_suffix(".md")]
    if best_distances(result):
        plot(result).savefig(path.with_suffix(".png"), dpi=160, metadata={"Software": None})
        written.append(path.with_suffix(".png"))
    if path.resolve() == measured:
        readme = ROOT / "README.md"
        write_atomically(readme, fill(readme.read_text(encoding="utf-8"), text))
        written.append(readme)
    print("Written:", ", ".join(map(str, written)))


if __name__ == "__main__":
    main()
