"""The process that holds one network and does with it what `peers` asks, one thing at a time.

It reads a JSON object {"do": name, …} from each line of standard input and answers with one on
standard output. While it waits it uses no processor, so others measure undisturbed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import networks, recipes
from diffusion_lib import data, evaluation, sampling
from diffusion_lib.classifier import load_classifier
from diffusion_lib.objective import denoising_loss
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import TrainConfig, train

ENDLESS = 10**6  # steps
SAMPLING_BATCH = 64
DRAWN_TOGETHER = 100
RESAMPLES = 100
PACKAGES = ("torch", "diffusers", "denoising-diffusion-pytorch", "smalldiffusion")


class Worker:
    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.threads = torch.get_num_threads()
        self.dataset = data.load("mnist")
        self.schedule = NoiseSchedule.cosine()
        self.run = self.training_features = None

    # What the network is

    def machine(self) -> dict[str, Any]:
        found = {package: metadata.version(package) for package in PACKAGES}
        return {
            "threads": self.threads,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "versions": {"python": platform.python_version(), **found},
        }

    def describe(self) -> dict[str, Any]:
        model = self.build().eval()
        return {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "gflop": networks.forward_flop(model) / 1e9,
        }

    def build(self) -> torch.nn.Module:
        return networks.build(self.name, self.schedule, self.seed)

    # Speed

    def peak(self, seconds: float, side: int = 2048) -> dict[str, float]:
        """Largest rate of float32 matrix products, with all threads: GFLOP/s."""
        torch.set_num_threads(self.threads)
        a, b, out = (torch.rand(side, side) for _ in range(3))
        torch.mm(a, b, out=out)
        best, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
        return {"gflops": best}

    def training_rate(self, batch_size: int, threads: int, seconds: float) -> dict[str, float]:
        """Images per second of the common recipe, its first step not counted."""
        torch.set_num_threads(threads)
        config = recipes.common(ENDLESS, batch_size, 1e-4, self.seed)
        steps = train(self.build(), self.schedule, self.dataset, config)
        next(steps)
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() < start + seconds:
            next(steps)
            count += 1
        return {"rate": count * batch_size / (time.perf_counter() - start)}

    def sampling_rate(self, evaluations: int, threads: int, seconds: float) -> dict[str, float]:
        """Images per second, from the median time of an evaluation inside the sampler."""
        torch.set_num_threads(threads)
        model = self.build().eval()
        x_T = torch.randn(SAMPLING_BATCH, *networks.SHAPE)
        times, end, start = [], math.inf, time.perf_counter()
        while len(times) < 2 or start < end:
            for state in draw(model, self.schedule, x_T, "velocity", evaluations):
                now = time.perf_counter()
                if state.x_0_hat is not None:
                    times.append(now - start)
                    end = min(end, now + seconds)  # the first evaluation is not counted
                start = now
                if len(times) >= 2 and now > end:
                    break
        return {"rate": SAMPLING_BATCH / (evaluations * float(np.median(times[1:])))}

    def memory(self, batch_size: int) -> dict[str, float]:
        """Largest memory of this process, before and after two steps of training: MiB."""
        before = largest_memory()
        config = recipes.common(ENDLESS, batch_size, 1e-4, self.seed)
        steps = train(self.build(), self.schedule, self.dataset, config)
        next(steps), next(steps)
        return {"before": before, "training": largest_memory()}

    # Training

    def begin(self, folder: str, recipe: str, batch_size: int, **config: Any) -> dict[str, Any]:
        """Start a training, or go on with the one that `keep` left in the folder."""
        torch.set_num_threads(self.threads)
        self.run = Run(self, Path(folder), recipe, batch_size, **config)
        return self.run.report()

    def advance(self, seconds: float, limit: float) -> dict[str, Any]:
        """Train for a while, until its steps are done or `limit` seconds of training spent."""
        self.run.advance(seconds, limit)
        return self.run.report()

    def keep(self) -> dict[str, Any]:
        self.run.keep()
        return {}

    def finish(self) -> dict[str, Any]:
        self.run.finish()
        report = self.run.report()
        self.run = None
        return report

    def held_out(self, images: int) -> dict[str, float]:
        """Loss of the averaged weights on test images, each at a time of its own."""
        run, test = self.run, data.load("mnist", train=False)
        generator = torch.Generator().manual_seed(self.seed)
        t = torch.linspace(1, run.schedule.T, images).round().long()
        losses = []
        for rows in torch.arange(images).split(SAMPLING_BATCH):
            x_0 = data.to_float(test.images[rows])
            noise = torch.randn(x_0.shape, generator=generator)
            with torch.no_grad():
                losses.append(
                    denoising_loss(run.average, run.schedule, x_0, t[rows], noise, run.target)
                )
        return {"loss": torch.cat(losses).mean().item()}

    # Quality

    def sample(self, folder: str, recipe: str, index: int, steps: int) -> dict[str, None]:
        """Draw the batch of samples with this index; the same noise for every network."""
        torch.set_num_threads(self.threads)
        schedule, target = plan(self.name, recipe)
        model = networks.build(self.name, schedule, self.seed).eval()
        weights = torch.load(Path(folder) / "weights.pt", weights_only=True)
        model.load_state_dict(weights)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        x_T = torch.randn(DRAWN_TOGETHER, *networks.SHAPE, generator=generator)
        *_, last = draw(model, schedule, x_T, target, steps)
        save_array(Path(folder) / f"samples-{index}.npy", data.to_uint8(last.x_t).numpy())
        return {}

    def floor(self, samples: int) -> dict[str, dict[str, float]]:
        """Distance of test images from the training images, with its 95 % interval."""
        return {"distance": self.distance(data.load("mnist", train=False).images[:samples])}

    def score(self, folder: str, samples: int) -> dict[str, dict[str, float]]:
        """Distance of the samples drawn from the training images, likewise."""
        batches = range(-(-samples // DRAWN_TOGETHER))
        images = [torch.from_numpy(np.load(Path(folder) / f"samples-{i}.npy")) for i in batches]
        return {"distance": self.distance(torch.cat(images)[:samples])}

    def distance(self, images: Tensor) -> dict[str, float]:
        torch.set_num_threads(self.threads)
        classifier = load_classifier("mnist")
        if self.training_features is None:
            self.training_features = evaluation.features(classifier, self.dataset.images)
        found = evaluation.features(classifier, images)

        def statistic(rows: Tensor) -> float:
            return evaluation.frechet_distance(rows, self.training_features)

        low, high = evaluation.bootstrap(statistic, found, resamples=RESAMPLES, seed=self.seed)
        return {"value": statistic(found), "low": low, "high": high}


class Run:
    """One training of one network, which can stop and go on."""

    def __init__(self, worker: Worker, folder: Path, recipe: str, batch_size: int, **config: Any):
        self.folder, self.batch_size = folder, batch_size
        self.schedule, self.target = plan(worker.name, recipe)
        model = networks.build(worker.name, self.schedule, worker.seed)
        self.step, self.spent, self.losses, self.state = 0, 0.0, [], None
        self.average, resume = model, None
        if (folder / "state.pt").exists():
            saved = torch.load(folder / "state.pt", weights_only=True)
            self.step, self.spent, resume = saved["step"], saved["spent"], saved["tensors"]
        if recipe == "own":
            self.steps = ENDLESS
            own = networks.NETWORKS[worker.name].own
            self.states = recipes.train_own(
                model, self.schedule, worker.dataset, own, batch_size, worker.seed, resume
            )
        else:
            self.steps = config["steps"]
            settings: TrainConfig = recipes.common(
                self.steps, batch_size, config["learning_rate"], worker.seed
            )
            self.states = train(model, self.schedule, worker.dataset, settings, resume)

    def advance(self, seconds: float, limit: float) -> None:
        start, before = time.perf_counter(), self.spent
        while self.step < self.steps and self.spent < min(before + seconds, limit):
            self.state = next(self.states)
            self.spent = before + time.perf_counter() - start
            self.step, self.average = self.state.step, self.state.average
            self.losses = [*self.losses[-49:], self.state.loss.item()]

    def keep(self) -> None:
        """Save all that is needed to go on."""
        if self.state is not None and self.step < self.steps:
            tensors = self.state.tensors()
            save_tensors(
                self.folder / "state.pt",
                {"step": self.step, "spent": self.spent, "tensors": tensors},
            )

    def finish(self) -> None:
        """Save the averaged weights, from which samples are drawn, and nothing else."""
        save_tensors(self.folder / "weights.pt", self.average.state_dict())
        (self.folder / "state.pt").unlink(missing_ok=True)

    def report(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "steps": self.steps,
            "images": self.step * self.batch_size,
            "seconds": self.spent,
            "loss": float(np.mean(self.losses)) if self.losses else None,
        }


def plan(name: str, recipe: str) -> tuple[NoiseSchedule, str]:
    """The schedule and the target with which a network is trained."""
    if recipe == "own":
        own = networks.NETWORKS[name].own
        return own.schedule(), own.target
    return NoiseSchedule.cosine(), "velocity"


def draw(model, schedule: NoiseSchedule, x_T: Tensor, target: str, steps: int):
    """The sampler that all networks share: one evaluation of the network at each step."""
    return sampling.dpm_solver(model, schedule, x_T, steps=steps, target=target)


def largest_memory() -> float:
    """The most memory that this process has held: MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def save_tensors(path: Path, tensors: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(tensors, partial)
    os.replace(partial, path)


def save_array(path: Path, array: np.ndarray) -> None:
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    os.replace(partial, path)


def main() -> None:
    # The parent decides when to stop; it then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    name, seed = sys.argv[1:]
    worker = Worker(name, int(seed))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except FloatingPointError as error:  # the training ran away
            answer = {"diverged": str(error)}
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)


if __name__ == "__main__":
    main()
