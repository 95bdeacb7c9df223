"""The noise schedule: how much of the image and how much noise is left at each time.

Time is discrete and written as in Ho et al. 2020: t = 0 is clean data, t = 1 … T are noise
levels. Every table has T + 1 entries and is indexed by t itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule:
    """Tables of a forward process q(x_t | x_{t-1}) = N(√(1−β_t) x_{t-1}, β_t I).

    Make one with `linear`, `cosine` or `from_beta`. Each table is a float32 tensor of shape
    (T + 1,), computed in float64 and rounded once: 1 − ᾱ_1 taken from a float32 ᾱ would be
    off by 1e-4, relative. Entry 0 is clean data: β₀ = 0, ᾱ₀ = 1.
    """

    beta: Tensor  # β_t, variance of the noise added by step t
    alpha: Tensor  # α_t = 1 − β_t
    alpha_bar: Tensor  # ᾱ_t = α_1 ⋯ α_t, share of the image's variance left at t
    sqrt_alpha_bar: Tensor  # √ᾱ_t, factor on x₀ in the jump to t
    sqrt_one_minus_alpha_bar: Tensor  # √(1−ᾱ_t), factor on ε in the jump to t
    posterior_variance: Tensor  # β̃_t = β_t (1−ᾱ_{t-1}) / (1−ᾱ_t), Ho et al. 2020, eq. 7
    log_snr: Tensor  # ln(ᾱ_t / (1−ᾱ_t)); +∞ at t = 0

    def __repr__(self) -> str:
        return f"NoiseSchedule(T={self.T})"

    @property
    def T(self) -> int:
        """Number of noise levels."""
        return len(self.beta) - 1

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1−ᾱ_t), shape (T + 1,); +∞ at t = 0."""
        return self.log_snr.exp()

    @classmethod
    def from_beta(cls, beta) -> NoiseSchedule:
        """Schedule with the given β_1 … β_T.

        beta: shape (T,), every value strictly between 0 and 1.
        Raises ValueError for another shape, a value outside (0, 1), NaN included, or a √ᾱ_T
        too small for float32.
        """
        beta = torch.as_tensor(beta, dtype=torch.float64, device="cpu")
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(f"beta must have shape (T,) with T >= 1, got {tuple(beta.shape)}")
        outside = ~((beta > 0) & (beta < 1))
        if outside.any():
            t = int(outside.nonzero()[0, 0]) + 1
            raise ValueError(f"beta must lie in (0, 1), got beta_{t} = {beta[t - 1].item():g}")
        beta = torch.cat([beta.new_zeros(1), beta])
        alpha = 1 - beta
        # Sums of log1p keep 1 − ᾱ exact to the last digits where ᾱ itself is nearly 1.
        log_alpha_bar = torch.log1p(-beta).cumsum(0)
        one_minus_alpha_bar = torch.expm1(log_alpha_bar).abs()
        posterior_variance = torch.zeros_like(beta)
        posterior_variance[1:] = beta[1:] * one_minus_alpha_bar[:-1] / one_minus_alpha_bar[1:]
        tables = cls(
            beta=beta,
            alpha=alpha,
            alpha_bar=log_alpha_bar.exp(),
            sqrt_alpha_bar=(log_alpha_bar / 2).exp(),
            sqrt_one_minus_alpha_bar=one_minus_alpha_bar.sqrt(),
            posterior_variance=posterior_variance,
            log_snr=log_alpha_bar - one_minus_alpha_bar.log(),
        )
        tables = tables._map(lambda table: table.float())
        if tables.sqrt_alpha_bar[-1] == 0:
            raise ValueError(
                f"beta leaves nothing of the image: alpha_bar_T = exp({log_alpha_bar[-1]:.0f}) "
                "is 0 in float32; use fewer or smaller values"
            )
        return tables

    @classmethod
    def linear(cls, T: int = 1000) -> NoiseSchedule:
        """β_t rising evenly from 1e-4 to 0.02 (Ho et al. 2020, section 4), times 1000/T.

        The factor keeps the noise at the end about the same for every T.
        Raises ValueError if T is not an integer above 20 (β_T would reach 1).
        """
        if not isinstance(T, int) or T <= 20:
            raise ValueError(f"T must be an integer above 20 for the linear schedule, got {T!r}")
        return cls.from_beta(torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T))

    @classmethod
    def cosine(cls, T: int = 1000) -> NoiseSchedule:
        """ᾱ_t = f(t)/f(0), f(t) = cos²(π/2 · (t/T + s)/(1 + s)), s = 0.008, β_t capped at 0.999.

        Nichol & Dhariwal 2021, eq. 17. Raises ValueError if T is not a positive integer.
        """
        if not isinstance(T, int) or T < 1:
            raise ValueError(f"T must be a positive integer, got {T!r}")
        s = 0.008
        time = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((time + s) / (1 + s) * torch.pi / 2) ** 2
        return cls.from_beta((1 - f[1:] / f[:-1]).clamp(max=0.999))

    def tables(self) -> dict[str, Tensor]:
        """All tables, shape (T + 1,), by name; `NoiseSchedule(**tables)` is the same schedule."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device) -> NoiseSchedule:
        """The same tables on another device."""
        return self._map(lambda table: table.to(device))

    def add_noise(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The jump to time t: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4).

        x_0, noise: shape (B, …), alike. t: int64, shape (B,), in 0 … T. Returns a new tensor.
        Raises TypeError for a t that is not int64, ValueError for shapes or devices that
        disagree, a t outside 0 … T, or NaN in x_0.
        """
        self._check("x_0", x_0, t)
        self._check_alike("noise", noise, x_0)
        signal = at(self.sqrt_alpha_bar, t, x_0)
        return signal * x_0 + at(self.sqrt_one_minus_alpha_bar, t, x_0) * noise

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x₀) (Ho et al. 2020, eqs. 6 and 7).

        x_0, x_t: shape (B, …), alike. t: int64, shape (B,), in 1 … T.
        Returns the mean, shaped like x_0, and β̃_t, shape (B, 1, …). Raises as `add_noise`.
        """
        self._check("x_0", x_0, t, first=1)
        self._check_alike("x_t", x_t, x_0)
        before = t - 1
        var = at(self.sqrt_one_minus_alpha_bar, t, x_0) ** 2
        var_before = at(self.sqrt_one_minus_alpha_bar, before, x_0) ** 2
        weight_0 = at(self.sqrt_alpha_bar, before, x_0) * at(self.beta, t, x_0) / var
        weight_t = at(self.alpha, t, x_0).sqrt() * var_before / var
        return weight_0 * x_0 + weight_t * x_t, at(self.posterior_variance, t, x_0)

    def _map(self, change) -> NoiseSchedule:
        return NoiseSchedule(**{name: change(table) for name, table in self.tables().items()})

    def _check(self, name: str, x: Tensor, t: Tensor, first: int = 0) -> None:
        if not x.is_floating_point():
            raise TypeError(f"{name} must be float, in [-1, 1], got {x.dtype}")
        check_time(t, self.T, first)
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape ({x.shape[0]},) like {name}, got {tuple(t.shape)}")
        # Reading a value back from an accelerator would stall it at every training step.
        if x.device.type == "cpu" and x.isnan().any():
            raise ValueError(f"{name} contains NaN; images must be finite")

    def _check_alike(self, name: str, x: Tensor, x_0: Tensor) -> None:
        if x.shape != x_0.shape:
            raise ValueError(
                f"{name} must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(x.shape)}"
            )
        if x.device != x_0.device:
            raise ValueError(f"{name} must be on the device of x_0, {x_0.device}, got {x.device}")


def check_time(t: Tensor, T: int, first: int = 0) -> None:
    """Raise TypeError or ValueError unless t is int64, of shape (B,), with values in first … T.

    Values are read only on the CPU: on an accelerator that would stall every training step.
    """
    if not isinstance(t, Tensor) or t.dtype != torch.int64:
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"t must be an int64 tensor of shape (B,), got {kind}")
    if t.ndim != 1:
        raise ValueError(f"t must have shape (B,), got {tuple(t.shape)}")
    if t.device.type == "cpu" and len(t) and not (first <= t.min() and t.max() <= T):
        wrong = t[(t < first) | (t > T)][0].item()
        raise ValueError(f"t must lie in {first} … {T}, got {wrong}")


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t], shaped (B, 1, …) to broadcast against `like`, shape (B, …).

    `index_select` refuses negative times, which plain indexing would wrap around.
    Raises ValueError for a t of another length or on another device.
    """
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must have shape ({len(like)},), got {tuple(t.shape)}")
    if t.device != table.device:
        raise ValueError(
            f"t is on {t.device} but the schedule on {table.device}: "
            "move it with schedule.to(device)"
        )
    return table.index_select(0, t).view(-1, *[1] * (like.ndim - 1))
