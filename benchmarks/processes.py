"""Two processes on two cores, or one process with two threads: which trains faster?

    python -m benchmarks.processes    a few minutes on two cores that do nothing else

Both train the `mnist-cpu` network by the library's own command, by turns; the two processes, with
a thread each, share the batch and speak over gloo. Writes results/processes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, write_atomically
from diffusion_lib.runs import provenance

WAYS = {"one process, two threads": (1, 2), "two processes, a thread each": (2, 1)}
WARM_UP = 10  # steps, and then so many to a line of the log


def rate(processes: int, threads: int, steps: int, batch_size: int) -> float:
    """Images/s of a short training: the median over its log, without the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        never = str(steps + 1)
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
            + ["-m", "diffusion_lib", "train", "--preset", "mnist-cpu", "--out", folder]
            + ["--steps", str(steps), "--batch-size", str(batch_size), "--device", "cpu"]
            + ["--log-every", str(WARM_UP), "--checkpoint-every", never, "--evaluate-every", never],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        log = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [line for line in map(json.loads, log) if "images_per_second" in line]
    return statistics.median(line["images_per_second"] for line in lines[1:])


def table(results: dict[str, Any]) -> str:
    """The rates and their ratio, round by round, in Markdown."""
    one, two = (results["images_per_second"][name] for name in WAYS)
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    lines = ["| | images/s trained |", "| --- | ---: |"]
    for name, rates in zip(WAYS, (one, two), strict=True):
        lines.append(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f}) |"
        )
    told = (
        f"Two processes train {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f}–{max(ratios):.2f}) as one with two threads: medians of {len(one)} "
        f"rounds by turns, of {results['steps']} steps with {results['batch_size']} images, "
        "with the extremes. {device}, torch {versions[torch]}."
    )
    return "\n".join([*lines, "", told.format(**results["made_by"]), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--steps", type=int, default=60, help="of each training (60)")
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes (64)")
    parser.add_argument("--out", type=Path, default=Path("results/processes.json"))
    given = parser.parse_args()
    if given.steps < 3 * WARM_UP:
        parser.error(f"--steps must be at least {3 * WARM_UP}, got {given.steps}")
    rates = {name: [] for name in WAYS}
    for turn in range(given.rounds):
        for name, (processes, threads) in WAYS.items():
            rates[name].append(rate(processes, threads, given.steps, given.batch_size))
            print(f"round {turn + 1}: {name}, {rates[name][-1]:.1f} images/s", flush=True)
    command = shlex.join(["python", "-m", "benchmarks.processes", *sys.argv[1:]])
    results = {
        "made_by": provenance() | {"command": command},
        "steps": given.steps,
        "batch_size": given.batch_size,
        "images_per_second": rates,
    }
    write_atomically(given.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomically(given.out.with_suffix(".md"), table(results))


if __name__ == "__main__":
    main()
