import math

import pytest
import torch
from sklearn.datasets import load_digits

from diffusion_lib.exact import GaussianDenoiser, MixtureDenoiser, dataset_denoiser
from diffusion_lib.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def times(t, n):
    return torch.full((n,), t, dtype=torch.int64)


def grid_posterior_mean(log_density, x_t, t, grid):
    """E[x_0 | x_t] in one dimension by summing over a grid of x_0."""
    signal = SCHEDULE.sqrt_alpha_bar[t].double()
    variance = SCHEDULE.sqrt_one_minus_alpha_bar[t].double() ** 2
    log_likelihood = -((x_t[:, None] - signal * grid) ** 2) / (2 * variance)
    weight = torch.softmax(log_density(grid) + log_likelihood, dim=1)
    assert torch.allclose(weight.sum(1), torch.ones(len(x_t), dtype=torch.float64))
    return weight @ grid


@pytest.mark.parametrize("t", [50, 300, 1000])
def test_gaussian_denoiser_is_the_posterior_mean(t):
    mean, variance = torch.tensor([0.4]), torch.tensor([0.25])
    x_t = torch.linspace(-2, 2, 9)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    expected = grid_posterior_mean(lambda x: -((x - mean) ** 2) / (2 * variance), x_t, t, grid)
    got = GaussianDenoiser(SCHEDULE, mean, variance)(x_t[:, None], times(t, 9))
    torch.testing.assert_close(got[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [50, 300, 1000])
def test_mixture_denoiser_is_the_posterior_mean(t):
    weights, means, variances = torch.tensor([[0.2, 0.5, 0.3], [-1, 0.1, 0.9], [0.02, 0.1, 0.3]])
    x_t = torch.linspace(-2, 2, 9)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)

    def log_density(x):
        log_parts = -((x[:, None] - means) ** 2) / (2 * variances) - variances.log() / 2
        return torch.logsumexp(weights.log() + log_parts, dim=1)

    denoiser = MixtureDenoiser(SCHEDULE, weights, means[:, None], variances)
    torch.testing.assert_close(
        denoiser(x_t[:, None], times(t, 9))[:, 0].double(),
        grid_posterior_mean(log_density, x_t, t, grid),
        rtol=1e-4,
        atol=1e-5,
    )
    posterior = denoiser.posterior(x_t[:, None], times(t, 9))
    torch.testing.assert_close(posterior.sum(1), torch.ones(9))


def test_the_posterior_of_components_counts_every_pixel():
    weights, variances = torch.tensor([[0.3, 0.7], [0.02, 0.5]])
    means = torch.tensor([[-0.5, 0.2, 0.1], [0.4, 0.0, -0.3]])
    x_t = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    signal = SCHEDULE.alpha_bar[300]
    scale = (signal * variances + 1 - signal).sqrt()[:, None]
    log_likelihood = torch.distributions.Normal(signal.sqrt() * means, scale).log_prob(x_t[:, None])
    expected = torch.softmax(weights.log() + log_likelihood.sum(2), dim=1)
    got = MixtureDenoiser(SCHEDULE, weights, means, variances).posterior(x_t, times(300, 6))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_posterior_mean_has_the_least_squared_error():
    """E(x₀ − g)² = E x₀² − 2 g E x₀ + g² over the posterior: least at g = E x₀, by its variance."""
    points = torch.tensor([-1.0, 0.1, 0.2, 0.9])
    x_t = torch.linspace(-2, 2, 5)[:, None]
    denoiser = dataset_denoiser(SCHEDULE, points[:, None])
    posterior, best = denoiser.posterior(x_t, times(300, 5)), denoiser(x_t, times(300, 5))
    guesses = torch.linspace(-1.5, 1.5, 301)
    error = (posterior[:, None] * (points - guesses[:, None]) ** 2).sum(-1)  # (5, 301)
    second = (posterior * points**2).sum(1, keepdim=True)
    torch.testing.assert_close(error, second - 2 * best * guesses + guesses**2)
    assert (guesses[error.argmin(1)] - best[:, 0]).abs().max() <= 0.005 + 1e-6
    assert (error >= second - best**2 - 1e-6).all()


def test_one_component_is_the_gaussian():
    x_t = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    mean = torch.full((1, 2, 2), 0.3)
    mixture = MixtureDenoiser(SCHEDULE, torch.ones(1), mean[None], torch.tensor([0.5]))
    gaussian = GaussianDenoiser(SCHEDULE, mean, torch.tensor(0.5))
    t = torch.tensor([1, 10, 100, 500, 1000])
    torch.testing.assert_close(mixture(x_t, t), gaussian(x_t, t), rtol=1e-5, atol=1e-5)


def test_dataset_denoiser_recalls_at_low_noise_and_averages_at_high_noise():
    digits = torch.tensor(load_digits().images[:100] / 8 - 1, dtype=torch.float32)[:, None]
    denoiser = dataset_denoiser(SCHEDULE, digits)
    noise = torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    near = SCHEDULE.add_noise(digits, times(50, 100), noise)
    torch.testing.assert_close(denoiser(near, times(50, 100)), digits, rtol=0, atol=1e-3)
    assert (denoiser.posterior(near, times(50, 100)).argmax(1) == torch.arange(100)).all()
    far = SCHEDULE.add_noise(digits, times(1000, 100), noise)
    average = digits.mean(0).expand_as(far)
    torch.testing.assert_close(denoiser(far, times(1000, 100)), average, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianDenoiser(SCHEDULE, torch.tensor(math.nan), torch.tensor(1.0)), "mean"),
        (lambda: GaussianDenoiser(SCHEDULE, torch.tensor(0.0), torch.tensor(-1.0)), "variance"),
        (lambda: dataset_denoiser(SCHEDULE, torch.tensor([[math.nan]])), "means must be finite"),
        (
            lambda: MixtureDenoiser(
                SCHEDULE, torch.tensor([0.5, 0.4]), torch.zeros(2, 1), torch.ones(2)
            ),
            "weights must sum to 1, got 0.9",
        ),
        (
            lambda: MixtureDenoiser(SCHEDULE, torch.ones(1), torch.zeros(2, 1), torch.ones(2)),
            "same length, got 1, 2 and 2",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
