"""Denoisers that are exactly right, for data whose distribution is known.

Each follows the protocol of a network, `model(x_t, t) -> target`, so that it can stand in for
one in any sampler or loss. They are the oracle of the tests and chapters. The best denoiser
in the squared error is the posterior mean E[x₀ | x_t]; each class computes it in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lib.schedule import NoiseSchedule, at, check_time


@dataclass(frozen=True, eq=False)
class GaussianDenoiser:
    """Exact for x₀ ~ N(mean, diag(variance)). Returns x̂₀ = E[x₀ | x_t] (target "data").

    mean, variance: broadcastable to one sample, shape (…); variance > 0.
    Raises ValueError for NaN or a variance that is not positive.
    """

    schedule: NoiseSchedule
    mean: Tensor
    variance: Tensor

    def __post_init__(self):
        _check_finite("mean", self.mean)
        _check_positive("variance", self.variance)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        check_time(t, self.schedule.T)
        signal = at(self.schedule.sqrt_alpha_bar, t, x_t)
        noise_var = at(self.schedule.sqrt_one_minus_alpha_bar, t, x_t) ** 2
        gain = signal * self.variance / (signal**2 * self.variance + noise_var)
        return self.mean + gain * (x_t - signal * self.mean)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """Exact for x₀ ~ Σ_k weights_k N(means_k, variances_k I). Returns x̂₀ (target "data").

    weights: (K,), positive, sum 1. means: (K, …), one sample each. variances: (K,), >= 0;
    zero makes a component a point. Raises ValueError where this does not hold.
    """

    schedule: NoiseSchedule
    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self):
        _check_finite("means", self.means)
        _check_positive("weights", self.weights)
        if abs(self.weights.sum().item() - 1) > 1e-5:
            raise ValueError(f"weights must sum to 1, got {self.weights.sum().item():g}")
        _check_finite("variances", self.variances)
        if (self.variances < 0).any():
            raise ValueError(f"variances must not be negative, got {self.variances.min():g}")
        if not len(self.weights) == len(self.means) == len(self.variances):
            raise ValueError(
                "weights, means and variances must have the same length, got "
                f"{len(self.weights)}, {len(self.means)} and {len(self.variances)}"
            )

    def posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Bayes' rule over components, p(k | x_t): shape (B, K), each row sums to 1.

        x_t: shape (B, …). t: int64, shape (B,), in 1 … T. Raises TypeError for a t that is not
        int64, ValueError for one of another shape or outside 1 … T.
        """
        check_time(t, self.schedule.T, first=1)
        signal, variance = self._marginal(x_t, t)
        pixels = x_t.flatten(1)  # (B, D)
        means = self.means.flatten(1)  # (K, D)
        # |x − √ᾱ μ|² by its three terms: (B, K) numbers in memory instead of (B, K, D).
        distance = (
            pixels.square().sum(1, keepdim=True)
            - 2 * signal * pixels @ means.T
            + signal**2 * means.square().sum(1)
        )
        log_likelihood = -(distance / variance + pixels.shape[1] * variance.log()) / 2
        return torch.softmax(self.weights.log() + log_likelihood, dim=1)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        posterior = self.posterior(x_t, t)
        signal, variance = self._marginal(x_t, t)
        # Within component k, E[x₀ | x_t, k] = μ_k + gain_k (x_t − √ᾱ μ_k).
        gain = signal * self.variances / variance  # (B, K)
        from_means = (posterior * (1 - gain * signal)) @ self.means.flatten(1)
        from_x_t = (posterior * gain).sum(1, keepdim=True) * x_t.flatten(1)
        return (from_means + from_x_t).view_as(x_t)

    def _marginal(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t, shape (B, 1), and each component's variance at t, shape (B, K)."""
        pixels = x_t.flatten(1)
        signal = at(self.schedule.sqrt_alpha_bar, t, pixels)
        noise_var = at(self.schedule.sqrt_one_minus_alpha_bar, t, pixels) ** 2
        return signal, signal**2 * self.variances + noise_var


def dataset_denoiser(schedule: NoiseSchedule, x_0: Tensor) -> MixtureDenoiser:
    """Exact for data drawn evenly from the N samples x_0, shape (N, …).

    This is the best that training on exactly these images could reach; it only ever
    recalls averages of them. Its `posterior` tells which of them x_t came from.
    """
    n = len(x_0)
    return MixtureDenoiser(schedule, x_0.new_full((n,), 1 / n), x_0, x_0.new_zeros(n))


def _check_finite(name: str, x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_positive(name: str, x: Tensor) -> None:
    _check_finite(name, x)
    if (x <= 0).any():
        raise ValueError(f"{name} must be positive, got {x.min().item():g}")
