"""Training: a generator that yields its state after every step.

    for state in train(model, schedule, dataset, TrainConfig(steps=1000)):
        if state.step % 100 == 0:
            print(state.step, state.loss.item())
    network = state.average

Whatever watches the training (a progress bar, a curve, a log) is a loop around it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_lib.data import Dataset, to_float
from diffusion_lib.objective import Target, check_target, denoising_loss
from diffusion_lib.schedule import NoiseSchedule


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000  # updates of the weights
    batch_size: int = 128  # images an update
    learning_rate: float = 2e-3  # the peak, reached after `warmup`, then a half cosine down to 0
    warmup: int = 50  # steps, at most half of all
    weight_decay: float = 0.0  # AdamW's, per step and unit of learning rate
    clip_norm: float = 1.0  # longest gradient, in the L2 norm over all weights
    average_decay: float = 0.995  # of the moving average of the weights, per step, once warm
    target: Target = "velocity"  # what the network predicts
    seed: int = 0  # of batches, times and noise

    def __post_init__(self):
        check_target(self.target)
        for name in ("steps", "batch_size", "warmup", "seed"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} must be an integer, got {getattr(self, name)!r}")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}")


@dataclass(frozen=True)
class TrainState:
    """What a step of training leaves behind. The two networks are live, not copies."""

    step: int  # 1 … steps
    loss: Tensor  # mean over the batch, a scalar left on the device
    model: nn.Module  # the network under training
    average: nn.Module  # the moving average of its weights: sample from this one


def train(
    model: nn.Module, schedule: NoiseSchedule, dataset: Dataset, config: TrainConfig
) -> Iterator[TrainState]:
    """Fit `model` to `dataset`, yielding a TrainState after every update.

    Each image gets a time drawn evenly from 1 … T and fresh noise (Ho et al. 2020,
    algorithm 1), seen as a regression of `config.target`. model, schedule and dataset must
    be on one device. Raises FloatingPointError when the loss stops being finite; by then
    the average still holds the weights of the step before.
    """
    device = dataset.images.device
    generator = torch.Generator(device).manual_seed(config.seed)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))

    for step in range(1, config.steps + 1):
        x_0, y = dataset.batch(config.batch_size, generator)
        t = torch.randint(1, schedule.T + 1, (len(x_0),), generator=generator, device=device)
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        labels = y if takes_labels(model) else None
        loss = denoising_loss(model, schedule, x_0, t, noise, config.target, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not (loss + norm).isfinite():
            raise FloatingPointError(
                f"the loss became {loss.item()} and its gradient's length {norm.item()} at step "
                f"{step}, learning rate {rate.get_last_lr()[0]:.2g}: lower learning_rate"
            )
        optimizer.step()
        rate.step()
        # Early on the average must be quick to forget the random start.
        decay = min(config.average_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        yield TrainState(step, loss.detach(), model, average)


@torch.no_grad()
def held_out_loss(
    model: nn.Module, schedule: NoiseSchedule, dataset: Dataset, target: Target, seed: int = 0
) -> Tensor:
    """Mean loss over a data set, each image once at a time t of its own: a scalar.

    Times are spread evenly over 1 … T and, like the noise, the same at every call with the
    same seed, so that two calls differ only by the network.
    """
    device = dataset.images.device
    generator = torch.Generator(device).manual_seed(seed)
    n = len(dataset)
    # The middles of n equal parts: every time is met as often as any other.
    spread = (2 * torch.arange(n, device=device) + 1) * schedule.T // (2 * n) + 1
    t = spread[torch.randperm(n, generator=generator, device=device)]
    losses = []
    for rows in torch.arange(n, device=device).split(1024):
        x_0 = to_float(dataset.images[rows])
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        labels = dataset.labels[rows] if takes_labels(model) else None
        losses.append(denoising_loss(model, schedule, x_0, t[rows], noise, target, labels))
    return torch.cat(losses).mean()


def takes_labels(model) -> bool:
    """Whether the model is called as model(x_t, t, y): it has a number of `classes`."""
    return bool(getattr(model, "classes", None))


def _rate(step: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate for the update after `step` updates."""
    warmup = min(config.warmup, config.steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return (1 + math.cos(math.pi * done)) / 2
