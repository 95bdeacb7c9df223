"""Samplers: from noise to data, one function per algorithm, each a generator of its states.

    *_, last = ddpm(model, schedule, x_T, generator=generator)
    images = last.x_t

Whatever watches a sampler (a progress bar, a figure) is a loop around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion_lib.objective import Target, check_target, split
from diffusion_lib.schedule import NoiseSchedule


class Step(NamedTuple):
    """One state of a sampler. The first has t = T and no x̂₀ yet, the last has t = 0."""

    t: int  # noise level of x_t
    x_t: Tensor  # (B, …)
    x_0_hat: Tensor | None  # (B, …), the clean image predicted on the way to x_t


@torch.no_grad()
def ddpm(
    model,
    schedule: NoiseSchedule,
    x_T: Tensor,
    *,
    generator: torch.Generator,
    target: Target = "noise",
    variance: Literal["posterior", "beta"] = "posterior",
    clip: bool = True,
    y: Tensor | None = None,
) -> Iterator[Step]:
    """Ancestral sampling, all T steps (Ho et al. 2020, algorithm 2).

    x_T: standard Gaussian noise, (B, …). generator: on the device of x_T, draws the noise of
    each step. variance: β̃_t ("posterior") or β_t ("beta"). clip: keep x̂₀ in [-1, 1].
    y: optional labels (B,). Raises ValueError for an unknown target or variance.
    """
    check_target(target)
    if variance not in ("posterior", "beta"):
        raise ValueError(f"variance must be 'posterior' or 'beta', got {variance!r}")
    table = schedule.posterior_variance if variance == "posterior" else schedule.beta
    yield Step(schedule.T, x_T, None)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        x_0_hat, _ = _predict(model, schedule, x_t, t, target, clip, y)
        mean, _ = schedule.posterior(x_0_hat, x_t, _full(t, x_t))
        # The step to t = 0 gives the mean: β_1 noise on the result would only be seen as grain.
        x_t = mean if t == 1 else mean + table[t].sqrt() * _randn_like(x_t, generator)
        yield Step(t - 1, x_t, x_0_hat)


@torch.no_grad()
def ddim(
    model,
    schedule: NoiseSchedule,
    x_T: Tensor,
    *,
    steps: int,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    target: Target = "noise",
    clip: bool = True,
    y: Tensor | None = None,
) -> Iterator[Step]:
    """DDIM over `steps` evenly spaced times (Song, Meng & Ermon 2021, eqs. 12 and 16).

    steps: 1 … T. eta: 0 is deterministic, 1 adds the noise of ancestral sampling and then
    needs a generator. x_T, target, clip and y are those of `ddpm`.
    Raises ValueError for steps or eta out of range, or an eta > 0 without a generator.
    """
    check_target(target)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0 … 1, got {eta}")
    if eta > 0 and generator is None:
        raise ValueError(f"eta = {eta} draws noise: give a generator")
    times = spaced_times(schedule.T, steps)
    yield Step(schedule.T, x_T, None)
    x_t = x_T
    for t, s in pairwise(times):  # s < t is the next time
        x_0_hat, noise_hat = _predict(model, schedule, x_t, t, target, clip, y)
        signal, sigma = schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar
        signal_t, signal_s, sigma_t, sigma_s = signal[t], signal[s], sigma[t], sigma[s]
        # (1 − ᾱ_t/ᾱ_s), as a product that does not cancel at either end of the schedule.
        a, b = signal_s * sigma_t, signal_t * sigma_s
        fresh = eta * (sigma_s / sigma_t) * ((a - b) * (a + b)).sqrt() / signal_s
        x_t = signal_s * x_0_hat + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * noise_hat
        if eta > 0:
            x_t = x_t + fresh * _randn_like(x_t, generator)
        yield Step(s, x_t, x_0_hat)


@torch.no_grad()
def dpm_solver(
    model,
    schedule: NoiseSchedule,
    x_T: Tensor,
    *,
    steps: int,
    target: Target = "noise",
    clip: bool = True,
    y: Tensor | None = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M), deterministic, of order 2 (Lu et al. 2022, "DPM-Solver++", algorithm 2).

    steps: 1 … T, one call of the model each. x_T, target, clip and y are those of `ddpm`.
    Raises ValueError for steps out of range.
    """
    check_target(target)
    times = log_snr_times(schedule, steps)
    lam = schedule.log_snr / 2  # λ_t = ln(√ᾱ_t / √(1−ᾱ_t)), +∞ at t = 0
    signal, sigma = schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar
    yield Step(schedule.T, x_T, None)
    x_t, before, h_before = x_T, None, None
    for t, s in pairwise(times):  # s < t is the next time
        x_0_hat, _ = _predict(model, schedule, x_t, t, target, clip, y)
        h = lam[s] - lam[t]
        # D is x̂₀ in the middle of the step, foretold by the line in λ through the last two. The
        # first step has no line yet. The last, with h = ∞, would follow it to infinity, but x̂₀
        # settles as the noise vanishes: there the last x̂₀ itself is the better guess.
        D = x_0_hat
        if before is not None and s > 0:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * before
        # Exact for an x̂₀ that stays D; at s = 0 it is D itself.
        x_t = sigma[s] / sigma[t] * x_t - signal[s] * torch.expm1(-h) * D
        before, h_before = x_0_hat, h
        yield Step(s, x_t, x_0_hat)


def spaced_times(T: int, steps: int) -> list[int]:
    """Times T = t_0 > t_1 > … > t_steps = 0, as evenly spaced as integers can be.

    Raises ValueError unless 1 <= steps <= T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1 … {T}, got {steps}")
    return torch.linspace(T, 0, steps + 1, dtype=torch.float64).round().long().tolist()


def log_snr_times(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Times T = t_0 > t_1 > … > t_steps = 0, evenly spaced in ln(√SNR + 0.05) down to t = 1.

    That is even in λ = ln √SNR, the time in which DPM-Solver thinks, where there is a signal.
    Even in λ throughout, nearly half of the cosine schedule's steps would go where √SNR < 0.05
    and x̂₀ hardly changes; even in t, the last step would start where much noise is left.
    Raises ValueError unless 1 <= steps <= T.
    """
    times = spaced_times(schedule.T, steps)
    u = (schedule.snr.cpu().sqrt() + 0.05).log()  # falls from +∞ at t = 0
    # Where the spacing comes to t = 1, go on to 0: a step from 1 to 0 would change next to nothing.
    wanted = torch.linspace(u[-1].item(), u[1].item(), steps + 1)[1:-1]
    for k, value in enumerate(wanted, start=1):
        nearest = int((u - value).abs().argmin())
        # Integers are too coarse at both ends: no time twice, and one left for each step to come.
        times[k] = max(steps - k, min(nearest, times[k - 1] - 1))
    return times


def _predict(model, schedule, x_t, t, target, clip, y) -> tuple[Tensor, Tensor]:
    """(x̂₀, ε̂) at the integer time t, consistent with each other after clipping."""
    times = _full(t, x_t)
    prediction = model(x_t, times) if y is None else model(x_t, times, y)
    x_0_hat, noise_hat = split(prediction.float(), target, schedule, x_t, times)
    if clip:
        return split(x_0_hat.clamp(-1, 1), "data", schedule, x_t, times)
    return x_0_hat, noise_hat


def _full(t: int, x_t: Tensor) -> Tensor:
    return torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)


def _randn_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
