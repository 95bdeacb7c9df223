"""The two ways in which a network is trained: the common recipe and its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import Recipe
from diffusion_lib.data import Dataset
from diffusion_lib.objective import denoising_loss
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import TrainConfig


def common(steps: int, batch_size: int, learning_rate: float, seed: int) -> TrainConfig:
    """The recipe that all networks share: AdamW, the velocity, a warm-up, half a cosine down
    to zero, a moving average of the weights. Its schedule is `NoiseSchedule.cosine()`."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=50,
        average_decay=0.995,
        target="velocity",
        seed=seed,
    )


@dataclass(frozen=True)
class State:
    """As `diffusion_lib.training.TrainState`."""

    step: int
    loss: Tensor
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def tensors(self) -> dict[str, Any]:
        """All that `train_own(…, resume=…)` needs to go on."""
        return {
            "step": self.step,
            "generator": self.generator.get_state(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def train_own(
    model: nn.Module,
    schedule: NoiseSchedule,
    dataset: Dataset,
    recipe: Recipe,
    batch_size: int,
    seed: int,
    resume: dict[str, Any] | None = None,
) -> Iterator[State]:
    """Train by a peer's own recipe, with no end, yielding a State after every update."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    weights, averages = list(model.parameters()), list(average.parameters())
    optimizer = recipe.optimizer(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    weight = recipe.weight(schedule) if recipe.weight else torch.ones(schedule.T + 1)
    step = 0
    if resume is not None:
        step = resume["step"]
        generator.set_state(resume["generator"])
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(resume[name])
    model.train()
    while True:
        step += 1
        x_0, _ = dataset.batch(batch_size, generator)
        t = torch.randint(1, schedule.T + 1, (batch_size,), generator=generator)
        noise = torch.randn(x_0.shape, generator=generator)
        losses = denoising_loss(model, schedule, x_0, t, noise, recipe.target)
        loss = (weight[t] * losses).mean()
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(weights, recipe.clip_norm)
        optimizer.step()
        if step % recipe.average_every == 0:
            updates = step // recipe.average_every
            # Early on it must be quick to forget the random start, or a short run would be lost.
            decay = min(recipe.average_decay, (1 + updates) / (10 + updates))
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - decay)
        yield State(step, loss.detach(), model, average, optimizer, generator)
