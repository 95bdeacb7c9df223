"""Training: a generator that yields its state after every step.

    for state in train(model, schedule, dataset, TrainConfig(steps=1000)):
        if state.step % 100 == 0:
            print(state.step, state.loss.item())
    network = state.average

Whatever watches the training (a progress bar, a curve, a log) is a loop around it; the one
that keeps a run in a folder is `diffusion_lib.runs.run`. From the shell:

    one device               python -m diffusion_lib train --data mnist --out runs/mnist
    several on one machine   torchrun --nproc-per-node 8 -m diffusion_lib train …
    several machines         torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
                                 --rdzv-endpoint HOST:PORT -m diffusion_lib train …
    go on after a stop       the same command again
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_lib.checkpoint import prefixed, under
from diffusion_lib.data import Dataset, to_float
from diffusion_lib.objective import Target, check_target, denoising_loss, takes_labels
from diffusion_lib.schedule import NoiseSchedule

# Reading a number back makes a GPU wait for the host, so it is done once in so many steps.
GPU_CHECKS_EVERY = 50


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    steps: int = 1000  # updates of the weights
    batch_size: int = 128  # images in an update, over all processes together
    # the peak, reached after `warmup` steps; then half a cosine down to 0
    learning_rate: float = 2e-3
    warmup: int = 50  # steps, at most half of all
    weight_decay: float = 0.0  # AdamW's, per step and unit of learning rate
    clip_norm: float = 1.0  # longest gradient, in the L2 norm over all weights
    average_decay: float = 0.995  # of the moving average of the weights, per step, once warm
    # what the network predicts: the noise, the clean data, or the velocity between them
    target: Target = "velocity"
    seed: int = 0  # of batches, times and noise; of a run, of the first weights too
    # compute in bfloat16 where that is safe. Pays on a GPU, costs much on most CPUs
    bfloat16: bool = False
    compile: bool = False  # compile the network first, which takes a minute. Pays on a GPU

    def __post_init__(self):
        check_target(self.target)
        for name in ("steps", "batch_size", "warmup", "seed"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} must be an integer, got {getattr(self, name)!r}")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}")


@dataclass(frozen=True)
class TrainState:
    """What a step of training leaves behind. All of it is live, not copied."""

    step: int  # 1 … steps
    loss: Tensor  # mean over the batch, a scalar left on the device
    norm: Tensor  # the gradient's length before it was clipped, likewise
    learning_rate: float  # of this step
    model: nn.Module  # the network under training
    average: nn.Module  # the moving average of its weights: sample from this one
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of batches, times and noise
    fault: Tensor  # step, loss, norm and rate where one was first not finite, or zeros

    def check(self) -> None:
        """Raise FloatingPointError if a step up to this one was not finite; waits for a GPU."""
        step, loss, norm, rate = self.fault.tolist()
        if step:
            raise FloatingPointError(
                f"the loss became {loss} and its gradient's length {norm} at step {step:.0f}, "
                f"learning rate {rate:.2g}: lower learning_rate"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that `train(…, resume=…)` needs to go on as if it had never stopped, by name: the
        weights and the optimizer's moments, each of the shape of its weight, and the generator.

        Raises as `check`: nothing that came after a fault is worth keeping.
        """
        self.check()
        tensors = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        tensors |= prefixed("model", self.model.state_dict())
        tensors |= prefixed("average", self.average.state_dict())
        for name, weight in self.model.named_parameters():
            tensors |= prefixed(f"optimizer.{name}", self.optimizer.state[weight])
        return tensors


def train(
    model: nn.Module,
    schedule: NoiseSchedule,
    dataset: Dataset,
    config: TrainConfig,
    resume: Mapping[str, Tensor] | None = None,
) -> Iterator[TrainState]:
    """Fit `model` to `dataset`, yielding a TrainState after every update.

    Each image gets a time drawn evenly from 1 … T and fresh noise (Ho et al. 2020,
    algorithm 1), seen as a regression of `config.target`. model, schedule and dataset must
    be on one device. resume: what `TrainState.tensors` returned, to go on from there.

    Where torch.distributed is initialised, each process takes its share of every batch; the
    batches, times and noise are the same for any number of processes.

    Raises FloatingPointError when the loss or its gradient stops being finite: at that step,
    or on a GPU within 50 steps. The weights are then those of the last good step.
    Raises ValueError for a batch that the processes cannot share evenly.
    """
    device = dataset.images.device
    several = distributed.is_available() and distributed.is_initialized()
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
    if config.batch_size % processes:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, {processes}, "
            f"got {config.batch_size}"
        )
    # The layout in which convolutions are quickest, on CPUs by a tenth.
    model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    generator = torch.Generator(device).manual_seed(config.seed)
    start = 0
    if resume is not None:
        start = int(resume["step"])
        generator.set_state(resume["generator"])
        model.load_state_dict(under("model", resume))
        average.load_state_dict(under("average", resume))
        for name, weight in model.named_parameters():
            optimizer.state[weight] = {
                # Laid out in memory like the weight, which the fused update relies on.
                key: torch.empty_like(weight).copy_(value) if value.ndim else value.to(device)
                for key, value in under(f"optimizer.{name}", resume).items()
            }

    network = DistributedDataParallel(model, broadcast_buffers=False) if processes > 1 else model
    if config.compile:
        network = torch.compile(network)
    weights, averages = list(model.parameters()), list(average.parameters())
    mine = slice(rank, None, processes)
    fault = torch.zeros(4, device=device)

    for step in range(start + 1, config.steps + 1):
        x_0, y = dataset.batch(config.batch_size, generator)
        t = torch.randint(1, schedule.T + 1, (len(x_0),), generator=generator, device=device)
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        labels = y[mine] if takes_labels(model) else None
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            loss = denoising_loss(
                network, schedule, x_0[mine], t[mine], noise[mine], config.target, labels
            ).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, config.clip_norm)
        loss = loss.detach()
        if several:
            distributed.all_reduce(loss)
            loss /= processes

        rate = config.learning_rate * _rate(step - 1, config)
        optimizer.param_groups[0]["lr"] = rate
        now = torch.stack([torch.full_like(loss, step), loss, norm, torch.full_like(loss, rate)])
        fault = torch.where((fault[0] == 0) & ~now.isfinite().all(), now.float(), fault)
        state = TrainState(step, loss, norm, rate, model, average, optimizer, generator, fault)
        if may_read(step, device) or step == config.steps:
            state.check()
        # As torch's own gradient scaler says it: from a fault on, leave all weights as they are.
        optimizer.found_inf = (fault[0] > 0).float()
        optimizer.step()
        # Early on the average must be quick to forget the random start.
        decay = min(config.average_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        yield state


@torch.no_grad()
def held_out_loss(
    model: nn.Module, schedule: NoiseSchedule, dataset: Dataset, target: Target, seed: int = 0
) -> Tensor:
    """Mean loss of a model over a data set, each image once at a time t of its own: a scalar.

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


def may_read(step: int, device: torch.device) -> bool:
    """Whether reading a number back at this step costs nothing worth mentioning."""
    return device.type != "cuda" or step % GPU_CHECKS_EVERY == 0


def _rate(step: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate for the update after `step` updates."""
    warmup = min(config.warmup, config.steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return (1 + math.cos(math.pi * done)) / 2
