import math

import pytest
import torch

from diffusion_lib.exact import GaussianDenoiser
from diffusion_lib.objective import (
    bound_term,
    bound_weight,
    denoising_loss,
    make_target,
    prior_term,
    simple_weight,
    split,
)
from diffusion_lib.schedule import NoiseSchedule

TARGETS = ["noise", "data", "velocity"]
SCHEDULE = NoiseSchedule.cosine()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_prediction_gives_back_image_and_noise(target):
    x_0, noise = draw(6, 1, 4, 4).clamp(-1, 1), draw(6, 1, 4, 4, seed=1)
    t = torch.tensor([1, 5, 100, 500, 800, 950])
    x_t = SCHEDULE.add_noise(x_0, t, noise)
    prediction = make_target(target, SCHEDULE, x_0, t, noise)
    x_0_hat, noise_hat = split(prediction, target, SCHEDULE, x_t, t)
    torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(noise_hat, noise, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_split_always_explains_x_t(target):
    """√ᾱ x̂₀ + √(1−ᾱ) ε̂ = x_t, whatever was predicted."""
    x_t, prediction = draw(6, 3), draw(6, 3, seed=1)
    t = torch.tensor([1, 5, 100, 500, 800, 950])
    x_0_hat, noise_hat = split(prediction, target, SCHEDULE, x_t, t)
    again = SCHEDULE.add_noise(x_0_hat, t, noise_hat)
    torch.testing.assert_close(again, x_t, rtol=1e-5, atol=1e-5)


def test_velocity_is_the_derivative_along_the_circle():
    """With √ᾱ = cos φ and √(1−ᾱ) = sin φ, v = dx_t/dφ (Salimans & Ho 2022, appendix D)."""
    x_0, noise = draw(1, 5).double(), draw(1, 5, seed=1).double()
    phi = math.atan2(SCHEDULE.sqrt_one_minus_alpha_bar[300], SCHEDULE.sqrt_alpha_bar[300])
    x = lambda angle: math.cos(angle) * x_0 + math.sin(angle) * noise  # noqa: E731
    derivative = (x(phi + 1e-5) - x(phi - 1e-5)) / 2e-5
    v = make_target("velocity", SCHEDULE, x_0, torch.tensor([300]), noise)
    torch.testing.assert_close(v, derivative, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_simple_weight_turns_the_loss_into_an_error_of_x_0(target):
    x_0, noise = draw(4, 8).clamp(-1, 1), draw(4, 8, seed=1)
    t = torch.tensor([20, 200, 600, 900])
    guess = draw(4, 8, seed=2)
    loss = denoising_loss(lambda x_t, t: guess, SCHEDULE, x_0, t, noise, target)
    x_t = SCHEDULE.add_noise(x_0, t, noise)
    x_0_hat, _ = split(guess, target, SCHEDULE, x_t, t)
    weighted = simple_weight(SCHEDULE, target)[t] * (x_0 - x_0_hat).square().mean(1)
    torch.testing.assert_close(loss, weighted, rtol=1e-4, atol=1e-5)


def test_bound_weight_is_half_the_fall_of_the_snr():
    schedule = NoiseSchedule.linear(100)
    alpha_bar = (1 - schedule.beta.double()).cumprod(0)
    snr = alpha_bar / (1 - alpha_bar)
    expected = (snr[1:-1] - snr[2:]) / 2
    torch.testing.assert_close(bound_weight(schedule)[2:].double(), expected, rtol=1e-4, atol=0)


def test_bound_term_is_the_divergence_of_two_gaussians():
    """For t >= 2, compared with torch.distributions' KL divergence of the two steps."""
    x_0, noise, guess = draw(3, 6).clamp(-1, 1), draw(3, 6, seed=1), draw(3, 6, seed=2)
    t = torch.tensor([2, 400, 999])
    x_t = SCHEDULE.add_noise(x_0, t, noise)
    true_mean, variance = SCHEDULE.posterior(x_0, x_t, t)
    model_mean, _ = SCHEDULE.posterior(guess, x_t, t)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(
        normal(true_mean, variance.sqrt()), normal(model_mean, variance.sqrt())
    )
    got = bound_term(lambda x_t, t: guess, SCHEDULE, x_0, t, noise, "data")
    torch.testing.assert_close(got, kl.sum(1), rtol=2e-3, atol=1e-5)


def test_prior_term_is_the_divergence_from_the_standard_gaussian():
    schedule = NoiseSchedule.from_beta([0.2, 0.3])  # far from pure noise, so that it is large
    x_0 = draw(3, 6)
    normal = torch.distributions.Normal
    end = normal(schedule.sqrt_alpha_bar[-1] * x_0, schedule.sqrt_one_minus_alpha_bar[-1])
    kl = torch.distributions.kl_divergence(end, normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_term(schedule, x_0), kl)


def test_bound_approaches_the_true_likelihood_of_gaussian_data_from_above():
    """On N(m, s²) with the exact denoiser the gap of the bound shrinks as T grows."""
    mean, variance = torch.tensor([0.2]), torch.tensor([0.3])
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.3)  # E[−ln p(x₀)]
    gaps = []
    for T in (200, 800, 3200):
        # An end and a start so close to pure noise and clean data that only the steps count.
        log_snr = torch.linspace(14, -14, T, dtype=torch.float64)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), log_snr.sigmoid()])
        schedule = NoiseSchedule.from_beta(1 - alpha_bar[1:] / alpha_bar[:-1])
        denoiser = GaussianDenoiser(schedule, mean, variance)
        # Expectations in closed form: E|x₀ − x̂₀|² is the posterior variance of x₀.
        a, s = schedule.alpha_bar.double(), schedule.sqrt_one_minus_alpha_bar.double() ** 2
        error = 0.3 * s / (0.3 * a + s)
        bound = (error[1] / schedule.beta[1] + math.log(2 * math.pi * schedule.beta[1])) / 2
        bound = bound + (bound_weight(schedule)[2:].double() * error[2:]).sum()
        bound = bound + (a[-1] * (0.3 + 0.04) + s[-1] - 1 - s[-1].log()) / 2
        gaps.append(bound.item() - entropy)
        # The function agrees with these expectations within its Monte-Carlo error.
        n = 4000
        x_0 = mean + variance.sqrt() * draw(n, 1, seed=3)
        t = torch.randint(1, T + 1, (n,), generator=torch.Generator().manual_seed(4))
        terms = T * bound_term(denoiser, schedule, x_0, t, draw(n, 1, seed=5), "data")
        estimate = terms + prior_term(schedule, x_0)
        assert abs(estimate.mean() - bound) < 4 * estimate.std() / n**0.5
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert 3.5 < gaps[0] / gaps[1] < 4.5 and 3.5 < gaps[1] / gaps[2] < 4.5  # order 1/T


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_target("score", SCHEDULE, draw(1, 2), torch.tensor([1]), draw(1, 2)),
            "target must be one of noise, data, velocity, got 'score'",
        ),
        (
            lambda: split(draw(1, 3), "data", SCHEDULE, draw(1, 2), torch.tensor([1])),
            r"prediction must have the shape of x_t, \(1, 2\), got \(1, 3\)",
        ),
        (
            lambda: split(draw(1, 2), "data", SCHEDULE, draw(1, 2), torch.tensor([0])),
            "t must lie in 1 … 1000, got 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
