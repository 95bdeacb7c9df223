"""Measure this library's network beside those of others, on MNIST, in one process tree.

    all of it                     python -m benchmarks.peers
    how fast, without training    python -m benchmarks.peers --stage speed
    does it work at all           python -m benchmarks.peers --minutes 0.2 --samples 200 \
                                      --work runs/peers --out runs/peers.json
    go on after a stop            the same command again

Each network lives in a process of its own, which waits while another is measured. This file
imports nothing outside the standard library: it runs before the peers are installed, and the
memory of a process is counted from that of the one that started it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, enter, write_atomically

NAMES = ("ours", "diffusers", "lucidrains", "smalldiffusion", "post")
MEMORY_BATCH = 64
SWEPT_BATCHES = (16, 64, 128)
# A training has at least so many updates, if need be by a smaller batch.
FEWEST_UPDATES, BATCHES = 2000, (128, 64, 32, 16, 8)
KEEP_EVERY = 4  # rounds

# What a kept result depends on.
SOURCES = [
    *("diffusion_lib/unet.py", "diffusion_lib/training.py", "diffusion_lib/objective.py"),
    *("diffusion_lib/schedule.py", "diffusion_lib/sampling.py", "diffusion_lib/data.py"),
    *("diffusion_lib/classifier.py", "diffusion_lib/evaluation.py", "benchmarks/networks.py"),
    *("benchmarks/post.py", "benchmarks/recipes.py", "benchmarks/requirements.txt"),
]


class Diverged(Exception):
    """A training whose loss is no longer finite."""


class Child:
    """A process with one network; see worker.py."""

    def __init__(self, name: str, seed: int):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have one thing done and wait for it."""
        answer = ""
        try:
            print(json.dumps({"do": do} | arguments), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            raise SystemExit(
                f"The process of {self.name} ended (status {self.process.wait()}) in {do}; "
                "what it said is above. What was finished is kept."
            )
        answer = json.loads(answer)
        if "diverged" in answer:
            raise Diverged(f"{self.name}: {answer['diverged']}")
        return answer


class Children(dict):
    """A process for each name, ended with the block."""

    def __init__(self, names: Iterable[str], seed: int):
        super().__init__((name, Child(name, seed)) for name in names)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: Any) -> None:
        for child in self.values():
            child.process.terminate()
        for child in self.values():
            child.process.wait()
            child.process.stdin.close()
            child.process.stdout.close()


# Speed


def measure_speed(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What the networks are, how fast they train and sample, and the memory that they take."""
    memory = {}
    for name in names:  # a fresh process each, which has done nothing else
        with Children([name], options.seed) as children:
            memory[name] = children[name].call("memory", batch_size=MEMORY_BATCH)
        tell(f"{name}: trains in {memory[name]['training']:.0f} MiB")

    found = {}
    with Children(names, options.seed) as children:
        threads = note_machine(children, options)["threads"]
        for name in names:
            child = children[name]
            batch_size, used = best_setting(child, threads, options.patience)
            found[name] = child.call("describe") | {
                "memory_mib": memory[name],
                "batch_size": batch_size,
                "threads": used,
                "training": [],
                "sampling": [],
            }
            tell(f"{name}: fastest with {batch_size} images and {used} threads")
        peaks = []
        for turn in range(1, options.rounds + 1):
            peak = children[names[0]].call("peak", seconds=options.patience / 4)["gflops"]
            peaks.append(peak)
            rates = []
            for name in names:
                child, of = children[name], found[name]
                setting = {"threads": of["threads"], "seconds": options.patience}
                trained = child.call("training_rate", batch_size=of["batch_size"], **setting)
                drawn = child.call("sampling_rate", evaluations=options.steps, **setting)
                of["training"].append(trained["rate"])
                of["sampling"].append(drawn["rate"])
                rates.append(f"{name} {trained['rate']:.1f} and {drawn['rate']:.2f}")
            tell(
                f"speed, round {turn} of {options.rounds}: images/s trained and drawn: "
                f"{', '.join(rates)}; peak {peak:.0f} GFLOP/s"
            )
    for of in found.values():
        of["share"] = [3 * of["gflop"] * rate / max(peaks) for rate in of["training"]]
        for quantity in ("training", "sampling", "share"):
            of[quantity] = spread(of[quantity])
    return {"peak_gflops": spread(peaks), "networks": found}


def note_machine(children: Children, options: argparse.Namespace) -> dict[str, Any]:
    """Keep what the processes run with: threads, instructions, versions."""
    machine = next(iter(children.values())).call("machine")
    write_json(options.work / "machine.json", machine)
    return machine


def best_setting(child: Child, threads: int, patience: float) -> tuple[int, int]:
    """The batch size and number of threads with which a network trains fastest."""

    def rate(batch_size: int, threads: int) -> float:
        setting = {"batch_size": batch_size, "threads": threads, "seconds": patience / 2}
        return child.call("training_rate", **setting)["rate"]

    rates = {}
    for batch_size in SWEPT_BATCHES:
        rates[batch_size, threads] = rate(batch_size, threads)
        if rates[batch_size, threads] < max(rates.values()):
            break
    batch_size, _ = max(rates, key=rates.get)
    if threads > 1:
        rates[batch_size, 1] = rate(batch_size, 1)
    return max(rates, key=rates.get)


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes and all."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": values,
    }


# Quality


def tune(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """For each network the batch size that leaves it enough updates, and of the learning rates
    offered the one with the least held-out loss after a tenth of the training time."""
    found = {}
    pilot = 60 * options.minutes / 10  # seconds
    tell("pilots of the common recipe")
    with Children(names, options.seed) as children:
        threads = note_machine(children, options)["threads"]
        for name in names:
            setting = {"batch_size": 16, "seconds": min(options.patience, pilot)}
            rate = children[name].call("training_rate", threads=threads, **setting)["rate"]
            batch_size = batch_for(60 * options.minutes * rate)
            found[name] = {"batch_size": batch_size, "rate": rate, "tried": {}}
            tell(f"{name}: {rate:.1f} images/s, so {batch_size} images a step")
        spent = {name: [0, 0.0] for name in names}
        for learning_rate in options.learning_rates:
            for name in names:
                child, of = children[name], found[name]
                config = {"recipe": "common", "batch_size": of["batch_size"]}
                config["steps"] = max(2, round(of["rate"] * pilot / of["batch_size"]))
                config["learning_rate"] = learning_rate
                try:
                    child.call("begin", folder="nowhere", **config)
                    report = child.call("advance", seconds=math.inf, limit=math.inf)
                    loss = child.call("held_out", images=256)["loss"]
                    spent[name][0] += report["images"]
                    spent[name][1] += report["seconds"]
                except Diverged:
                    loss = math.inf
                of["tried"][learning_rate] = loss
                tell(f"{name}: held-out loss {loss:.4f} with learning rate {learning_rate:g}")
    for name, of in found.items():
        images, seconds = spent[name]
        if not images:
            raise SystemExit(f"{name} diverges with each of --learning-rates")
        of["rate"] = images / seconds
        of["learning_rate"] = min(of["tried"], key=of["tried"].get)
    return found


def batch_for(images: float) -> int:
    """The largest batch with which so many images make enough updates, or the smallest."""
    fitting = [size for size in BATCHES if images / size >= FEWEST_UPDATES]
    return max(fitting, default=min(BATCHES))


def train_all(jobs: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Train the networks by turns, a slice of time each, until all are done."""
    pending = {
        name: job for name, job in jobs.items() if not (folder(job) / "report.json").exists()
    }
    if not pending:
        return
    budget = 60 * options.minutes
    with Children(pending, options.seed) as children:
        for name, job in pending.items():
            folder(job).mkdir(parents=True, exist_ok=True)
            report = children[name].call("begin", **job)
            if report["step"]:
                tell(f"{name}: goes on after step {report['step']}")
        turn = 0
        while pending:
            turn += 1
            for name, job in list(pending.items()):
                limit = budget if job["recipe"] == "own" else math.inf
                seconds = min(options.slice, budget / 4)
                report = children[name].call("advance", seconds=seconds, limit=limit)
                tell(
                    f"{name}, {job['recipe']} recipe: step {report['step']}, "
                    f"{report['seconds']:.0f} s of {budget:.0f}, loss {report['loss']:.4f}"
                )
                if report["step"] == report["steps"] or report["seconds"] >= limit:
                    report = children[name].call("finish")
                    write_json(folder(job) / "report.json", job | report)
                    del pending[name]
            if turn % KEEP_EVERY == 0:
                for name in pending:
                    children[name].call("keep")


def judge_all(jobs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw samples from each trained network and measure how far they are from the data."""
    floor = options.work / "floor.json"
    with Children(["ours"], options.seed) as children:
        judge = children["ours"]
        if not floor.exists():
            answer = judge.call("floor", samples=options.samples)
            write_json(floor, answer)
            tell(f"floor: {answer['distance']['value']:.3g} for {options.samples} test images")
        for job in jobs:
            score = folder(job) / "score.json"
            if score.exists():
                continue
            sample(job, options)
            answer = judge.call("score", folder=job["folder"], samples=options.samples)
            write_json(score, answer)
            tell(
                f"{job['name']}, {job['recipe']} recipe: distance {answer['distance']['value']:.3g}"
            )


def sample(job: dict[str, Any], options: argparse.Namespace) -> None:
    batches = -(-options.samples // 100)
    missing = [i for i in range(batches) if not (folder(job) / f"samples-{i}.npy").exists()]
    with Children([job["name"]] if missing else [], options.seed) as children:
        start = time.monotonic()
        for done, index in enumerate(missing):
            children[job["name"]].call(
                "sample",
                folder=job["folder"],
                recipe=job["recipe"],
                index=index,
                steps=options.steps,
            )
            left = (time.monotonic() - start) / (done + 1) * (len(missing) - done - 1)
            tell(
                f"{job['name']}, {job['recipe']} recipe: {batches - len(missing) + done + 1} of "
                f"{batches} hundred samples, {left / 60:.0f} min left"
            )


def measure_quality(names: list[str], options: argparse.Namespace) -> None:
    tuned = options.work / "tune.json"
    if not tuned.exists():
        write_json(tuned, tune(names, options))
    tuned = read_json(tuned)
    jobs = []
    for recipe in options.recipes:
        together = {}
        for name in names:
            if recipe == "own" and name == "ours":
                continue  # the common recipe is its own
            of = tuned[name]
            job = {"recipe": recipe, "batch_size": of["batch_size"]}
            job["folder"] = str(options.work / f"{name}-{recipe}")
            if recipe == "common":
                job["steps"] = max(2, round(60 * options.minutes * of["rate"] / of["batch_size"]))
                job["learning_rate"] = of["learning_rate"]
            together[name] = job
        train_all(together, options)
        jobs += [job | {"name": name} for name, job in together.items()]
    judge_all(jobs, options)


# What is kept


def collect(names: list[str], options: argparse.Namespace, settings: dict[str, Any]) -> dict:
    """All that the work folder holds, as one result."""
    work = options.work
    result = {key: settings[key] for key in ("command", "commit", "seed")}
    result["device"] = settings["device"]
    result["settings"] = settings["options"]
    result["networks"] = {name: {} for name in names}
    if (work / "machine.json").exists():
        machine = read_json(work / "machine.json")
        result["versions"] = machine.pop("versions")
        result["device"] |= machine
    if (work / "speed.json").exists():
        speed = read_json(work / "speed.json")
        result["peak_gflops"] = speed["peak_gflops"]
        for name in names:
            result["networks"][name]["speed"] = speed["networks"][name]
    if (work / "floor.json").exists():
        result["floor"] = read_json(work / "floor.json")["distance"]
    for name in names:
        for recipe in options.recipes:
            place = work / f"{name}-{recipe}"
            if (place / "score.json").exists():
                report = read_json(place / "report.json") | read_json(place / "score.json")
                for key in ("folder", "recipe", "steps"):
                    report.pop(key, None)
                result["networks"][name].setdefault("quality", {})[recipe] = report
    return result


def check_work(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run in the work folder: those of an earlier start, if it has them."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((ROOT / source).read_bytes())
    chosen = ("minutes", "samples", "steps", "rounds", "learning_rates", "patience", "slice")
    settings = {
        "options": {"networks": names} | {key: getattr(options, key) for key in chosen},
        "sources": digest.hexdigest(),
        "seed": options.seed,
        "device": {"cpu": cpu(), "cores": cores(), "system": platform.platform()},
    }
    path = options.work / "settings.json"
    if path.exists():
        kept = read_json(path)
        differs = [key for key in settings if kept[key] != settings[key]]
        if differs:
            raise SystemExit(
                f"{options.work} holds a run with other {', '.join(differs)}: give --work "
                "another folder, or remove this one"
            )
        return kept
    settings["command"] = shlex.join(["python", "-m", "benchmarks.peers", *options.arguments])
    settings["commit"] = commit()
    write_json(path, settings)
    return settings


def commit() -> str | None:
    """The commit of the repository, with "-dirty" if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def cpu() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def folder(job: dict[str, Any]) -> Path:
    return Path(job["folder"])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


BEGAN = time.monotonic()


def tell(line: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - BEGAN), 60)
    print(f"{minutes:4d}:{seconds:02d}  {line}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[float]:
        return [float(word) for word in text.split(",")]

    add = parser.add_argument
    add("--stage", choices=("speed", "quality", "all"), default="all")
    add("--only", type=words, default=list(NAMES), help=f"of {','.join(NAMES)}")
    add("--recipes", type=words, default=["common", "own"], help="common,own")
    add("--minutes", type=float, default=10, help="of training for each network (10)")
    add("--samples", type=int, default=2000, help="drawn from each network (2000)")
    add("--steps", type=int, default=20, help="network evaluations for a sample (20)")
    add(
        "--learning-rates",
        type=numbers,
        default=[5e-4, 1e-3, 2e-3],
        help="from which each network gets its best (5e-4,1e-3,2e-3)",
    )
    add("--rounds", type=int, default=5, help="of speed measurements (5)")
    add("--patience", type=float, default=6, help="seconds for one speed measurement (6)")
    add("--slice", type=float, default=30, help="seconds of training by turns (30)")
    add("--seed", type=int, default=0)
    add("--work", type=Path, default=ROOT / "benchmarks" / "work", help="what is kept meanwhile")
    add("--out", type=Path, default=ROOT / "results" / "peers.json")
    options = parser.parse_args(arguments)
    options.arguments = without_paths(arguments)
    for given, known in ((options.only, NAMES), (options.recipes, ("common", "own"))):
        unknown = [word for word in given if word not in known]
        if unknown:
            parser.error(f"{unknown[0]!r} is not one of {', '.join(known)}")
    options.work, options.out = options.work.resolve(), options.out.resolve()
    return options


def without_paths(arguments: list[str]) -> list[str]:
    """The arguments that a result depends on: those but --work and --out."""
    paths = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    paths.add_argument("--work")
    paths.add_argument("--out")
    return paths.parse_known_args(arguments)[1]


def main() -> None:
    options = parse(sys.argv[1:])
    # Relative paths are those of the place where the command was given.
    paths = ["--work", str(options.work), "--out", str(options.out)]
    enter("benchmarks.peers", [*options.arguments, *paths])
    names = [name for name in NAMES if name in options.only]
    settings = check_work(names, options)
    if options.stage in ("speed", "all") and not (options.work / "speed.json").exists():
        write_json(options.work / "speed.json", measure_speed(names, options))
    if options.stage in ("quality", "all"):
        measure_quality(names, options)
    write_json(options.out, collect(names, options, settings))
    tell(f"{options.out} is written; tables and plot: python -m benchmarks.report")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The same command goes on from here.") from None
