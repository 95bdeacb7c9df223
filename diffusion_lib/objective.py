"""What the network is asked to predict, and how its answer is scored.

The three targets are linear maps of one another, given x_t (Salimans & Ho 2022, appendix D):

    "noise"     ε
    "data"      x₀
    "velocity"  v = √ᾱ_t ε − √(1−ᾱ_t) x₀
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_lib.schedule import NoiseSchedule, at, check_time

Target = Literal["noise", "data", "velocity"]


def make_target(
    target: Target, schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """What a network with this target should return for add_noise(x_0, t, noise): like x_0.

    x_0, noise: shape (B, …), alike. t: int64, shape (B,), in 0 … T. Raises ValueError for an
    unknown target, shapes that disagree or a t outside 0 … T, TypeError for a t not int64.
    """
    check_target(target)
    check_time(t, schedule.T)
    if noise.shape != x_0.shape:
        raise ValueError(
            f"noise must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(noise.shape)}"
        )
    if target == "noise":
        return noise
    if target == "data":
        return x_0
    signal = at(schedule.sqrt_alpha_bar, t, x_0)
    return signal * noise - at(schedule.sqrt_one_minus_alpha_bar, t, x_0) * x_0


def split(
    prediction: Tensor, target: Target, schedule: NoiseSchedule, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(x̂₀, ε̂), the clean image and the noise that a prediction implies; each like x_t.

    t: int64, shape (B,), in 1 … T (at t = 0 there is no noise to tell).
    Raises ValueError for an unknown target, shapes that disagree, or t outside 1 … T.
    """
    check_target(target)
    check_time(t, schedule.T, first=1)
    if prediction.shape != x_t.shape:
        raise ValueError(
            f"prediction must have the shape of x_t, {tuple(x_t.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    signal = at(schedule.sqrt_alpha_bar, t, x_t)
    sigma = at(schedule.sqrt_one_minus_alpha_bar, t, x_t)
    if target == "noise":
        return (x_t - sigma * prediction) / signal, prediction
    if target == "data":
        return prediction, (x_t - signal * prediction) / sigma
    return signal * x_t - sigma * prediction, sigma * x_t + signal * prediction


def denoising_loss(
    model,
    schedule: NoiseSchedule,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    target: Target = "noise",
    y: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the target, one value per sample: shape (B,).

    With target "noise" its mean over the batch is L_simple (Ho et al. 2020, eq. 14).
    x_0, noise: (B, …). t: int64 (B,), in 1 … T. y: optional int64 labels (B,). Raises as
    `NoiseSchedule.add_noise`, and ValueError for an unknown target, a t of 0, or a model that
    returns another shape.
    """
    check_time(t, schedule.T, first=1)
    x_t = schedule.add_noise(x_0, t, noise)
    wanted = make_target(target, schedule, x_0, t, noise)
    prediction = model(x_t, t) if y is None else model(x_t, t, y)
    if prediction.shape != wanted.shape:
        raise ValueError(
            f"the model must return the shape of x_t, {tuple(x_t.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    return (prediction.float() - wanted).square().flatten(1).mean(1)


def simple_weight(schedule: NoiseSchedule, target: Target) -> Tensor:
    """w_t such that the unweighted loss on `target` equals w_t · |x₀ − x̂₀|²: shape (T + 1,).

    It is SNR for "noise", 1 for "data", SNR + 1 for "velocity" (Salimans & Ho 2022, section 4).
    Raises ValueError for an unknown target.
    """
    check_target(target)
    if target == "data":
        return torch.ones_like(schedule.beta)
    return schedule.snr + (1 if target == "velocity" else 0)


def bound_weight(schedule: NoiseSchedule) -> Tensor:
    """w_t such that L_{t-1} = w_t · |x₀ − x̂₀|², in nats, with variance β̃_t: shape (T + 1,).

    w_t = (SNR_{t-1} − SNR_t) / 2, for t >= 2 (Kingma et al. 2021, section 4). Entries 0 and 1
    are NaN: there the bound has no such term.
    """
    variance = schedule.sqrt_one_minus_alpha_bar**2
    weight = torch.full_like(schedule.beta, torch.nan)
    # The same difference as one product, which float32 does not cancel away.
    weight[2:] = schedule.alpha_bar[1:-1] * schedule.beta[2:] / (2 * variance[1:-1] * variance[2:])
    return weight


def bound_term(
    model, schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor, target: Target = "noise"
) -> Tensor:
    """L_{t-1} of the variational bound on −ln p(x₀), in nats, one per sample: shape (B,).

    For t >= 2 the KL divergence between q(x_{t-1} | x_t, x₀) and the model's step, both with
    variance β̃_t; for t = 1 the Gaussian −ln p(x₀ | x_1) with variance β_1 (Ho et al. 2020,
    eq. 5; pixels taken as continuous). The bound is the expectation of their sum over
    t = 1 … T, each with fresh noise, plus `prior_term`. x_0, noise, t, target, and what is
    raised: as for `denoising_loss`.
    """
    x_t = schedule.add_noise(x_0, t, noise)
    x_0_hat, _ = split(model(x_t, t), target, schedule, x_t, t)
    squared_error = (x_0 - x_0_hat).square().flatten(1).sum(1)
    beta_1 = schedule.beta[1]
    # One weight for every t: a choice between two terms would pass on the gradient of the
    # other one, which is NaN at t = 1.
    weight = bound_weight(schedule)
    weight[1] = 1 / (2 * beta_1)
    normaliser = x_0[0].numel() * (2 * torch.pi * beta_1).log() / 2
    return weight[t] * squared_error + torch.where(t == 1, normaliser, 0.0)


def prior_term(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x₀) ‖ N(0, I)), in nats, one per sample: shape (B,)."""
    mean_squared = schedule.alpha_bar[-1] * x_0.square().flatten(1).sum(1)
    variance = schedule.sqrt_one_minus_alpha_bar[-1] ** 2
    return (mean_squared + x_0[0].numel() * (variance - 1 - variance.log())) / 2


def check_target(target: str) -> None:
    """Raise ValueError unless target is one of "noise", "data", "velocity"."""
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")


def takes_labels(model) -> bool:
    """Whether the model is called as model(x_t, t, y): it has a number of `classes`."""
    return bool(getattr(model, "classes", None))
