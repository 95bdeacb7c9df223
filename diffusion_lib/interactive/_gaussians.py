"""Two laboratories of Gaussians: x = μ + σε, and the Kullback–Leibler divergence of two."""

from __future__ import annotations

import math

import anywidget
import traitlets

from ._common import STYLE, Figure, check_integer, check_real, module, real_slider
from ._laboratory import laboratory_noise

MU = (-3.0, 3.0)
SIGMA = (0.1, 3.0)
MAX_SAMPLES = 200


class GaussianView(anywidget.AnyWidget):
    """Browser side: gaussian.js."""

    _esm = module("gaussian")
    _css = STYLE

    mu = traitlets.Float().tag(sync=True)
    sigma = traitlets.Float().tag(sync=True)
    samples = traitlets.Int().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)

    def summary(self) -> str:
        x = self.mu + self.sigma * laboratory_noise(self.seed, (self.samples,))
        return (
            f"gaussian_laboratory: μ = {self.mu:g}, σ = {self.sigma:g}, {self.samples} samples "
            f"with mean {x.mean():.2f}, standard deviation {x.std(ddof=1):.2f}"
        )


def gaussian_laboratory(mu=0.0, sigma=1.0, *, samples=60, seed=0):
    """Sliders for μ and σ over samples x = μ + σε under their density.

    mu: −3 … 3. sigma: 0.1 … 3. samples: 2 … 200. seed: of the noise, which is
    `laboratory_noise(seed, (samples,))`; each fresh draw adds 1. Shown are each ε, joined by a
    line to its x, and the mean and the standard deviation (divided by n − 1) of the x.

    The page computes in float64. Raises TypeError or ValueError for anything else.
    """
    view = GaussianView(
        mu=check_real("mu", mu, *MU),
        sigma=check_real("sigma", sigma, *SIGMA),
        samples=check_integer("samples", samples, 2, MAX_SAMPLES),
        seed=check_integer("seed", seed, 0, 2**32 - 1),
    )
    return Figure(view, _sliders(view, {"mu": "μ", "sigma": "σ"}))


class DivergenceView(anywidget.AnyWidget):
    """Browser side: divergence.js."""

    _esm = module("divergence")
    _css = STYLE

    p_mu = traitlets.Float().tag(sync=True)
    p_sigma = traitlets.Float().tag(sync=True)
    q_mu = traitlets.Float().tag(sync=True)
    q_sigma = traitlets.Float().tag(sync=True)

    def summary(self) -> str:
        p, q = (self.p_mu, self.p_sigma), (self.q_mu, self.q_sigma)
        return (
            f"divergence_laboratory: p = N({p[0]:g}, {p[1]:g}²), q = N({q[0]:g}, {q[1]:g}²), "
            f"KL(p‖q) = {gaussian_kl(p, q):.4g}, KL(q‖p) = {gaussian_kl(q, p):.4g}"
        )


def divergence_laboratory(p=(0.0, 1.0), q=(1.0, 1.5)):
    """Sliders for two Gaussians: their densities, the integrands of both KL, and both KL in nats.

    p, q: mean, −3 … 3, and standard deviation, 0.1 … 3. The page computes in float64. Raises
    TypeError or ValueError for anything else.
    """
    traits = {}
    for name, pair in [("p", p), ("q", q)]:
        if len(pair) != 2:
            raise ValueError(f"{name} must be a mean and a standard deviation, got {pair!r}")
        traits[f"{name}_mu"] = check_real(f"the mean of {name}", pair[0], *MU)
        traits[f"{name}_sigma"] = check_real(f"the standard deviation of {name}", pair[1], *SIGMA)
    view = DivergenceView(**traits)
    names = {"p_mu": "μ of p", "p_sigma": "σ of p", "q_mu": "μ of q", "q_sigma": "σ of q"}
    return Figure(view, _sliders(view, names))


def gaussian_kl(p, q) -> float:
    """KL(p‖q) in nats of two Gaussians, each given as mean and standard deviation."""
    (p_mu, p_sigma), (q_mu, q_sigma) = p, q
    spread = (p_sigma**2 + (p_mu - q_mu) ** 2) / (2 * q_sigma**2)
    return math.log(q_sigma / p_sigma) + spread - 0.5


def _sliders(view, names: dict[str, str]) -> list:
    ranges = {trait: SIGMA if trait.endswith("sigma") else MU for trait in names}
    return [
        real_slider(view, trait, low=ranges[trait][0], high=ranges[trait][1], name=name)
        for trait, name in names.items()
    ]
