import math

import pytest
import torch
from scipy import stats

from diffusion_lib.schedule import NoiseSchedule

SCHEDULES = [
    NoiseSchedule.linear(),
    NoiseSchedule.linear(200),
    NoiseSchedule.cosine(),
    NoiseSchedule.cosine(50),
    NoiseSchedule.from_beta([0.5, 0.1, 0.9]),
]
NAMES = ["linear", "linear-200", "cosine", "cosine-50", "given"]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)


def ones(t):
    return torch.full((1,), t, dtype=torch.int64)


@every_schedule
def test_time_zero_is_clean_data(schedule):
    assert schedule.beta[0] == 0 and schedule.alpha_bar[0] == 1
    assert schedule.posterior_variance[:2].tolist() == [0, 0]
    assert schedule.log_snr[0] == math.inf
    x_0 = torch.randn(1, 2, 3)
    assert torch.equal(schedule.add_noise(x_0, ones(0), torch.randn(1, 2, 3)), x_0)


@every_schedule
def test_tables_agree_with_the_definitions_in_exact_arithmetic(schedule):
    from fractions import Fraction

    alpha_bar = Fraction(1)
    for t in range(1, min(schedule.T, 60) + 1):
        before, beta = alpha_bar, Fraction(schedule.beta[t].item())
        # Of α and β, stored in float32, the smaller one has the digits of the other's rounding.
        alpha_bar *= 1 - beta if beta < 0.5 else Fraction(schedule.alpha[t].item())
        close = dict(rel=5e-6)
        assert schedule.alpha_bar[t].item() == pytest.approx(float(alpha_bar), **close)
        noise = schedule.sqrt_one_minus_alpha_bar[t].item() ** 2
        assert noise == pytest.approx(float(1 - alpha_bar), **close)
        posterior = beta * (1 - before) / (1 - alpha_bar)
        assert schedule.posterior_variance[t].item() == pytest.approx(float(posterior), **close)
        snr = alpha_bar / (1 - alpha_bar)
        assert schedule.snr[t].item() == pytest.approx(float(snr), rel=5e-6)


@every_schedule
def test_signal_only_falls_and_shares_sum_to_one(schedule):
    assert (schedule.alpha_bar.diff() < 0).all()
    assert (schedule.log_snr.diff() < 0).all()
    shares = schedule.sqrt_alpha_bar**2 + schedule.sqrt_one_minus_alpha_bar**2
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=3e-7)


def test_first_noise_variance_keeps_its_digits():
    """1 − ᾱ_1 = β_1 = 1e-4; a float32 cumprod is off by 1.7e-4, relative."""
    variance = NoiseSchedule.linear().sqrt_one_minus_alpha_bar[1].double() ** 2
    assert variance.item() == pytest.approx(1e-4, rel=2e-7)


def test_linear_matches_ho_et_al():
    schedule = NoiseSchedule.linear()
    assert schedule.beta[1].item() == pytest.approx(1e-4)
    assert schedule.beta[1000].item() == pytest.approx(0.02)
    # Ho et al. 2020, section 4: KL(q(x_T | x_0) ‖ N(0, I)) is about 1e-5 bits per dimension.
    mean_squared = 0.3  # of an image in [-1, 1]
    noise = 1 - schedule.alpha_bar[-1].double()
    nats = (schedule.alpha_bar[-1] * mean_squared + noise - 1 - noise.log()) / 2
    assert 0.3e-5 < nats.item() / math.log(2) < 3e-5


def test_linear_ends_alike_for_every_T():
    ends = torch.stack([NoiseSchedule.linear(T).log_snr[-1] for T in (500, 1000, 4000)])
    torch.testing.assert_close(ends, ends[1].expand(3), rtol=0.02, atol=0)


def test_cosine_is_the_published_curve_where_beta_is_not_capped():
    schedule = NoiseSchedule.cosine(1000)
    for t in (1, 250, 500, 999):
        f = [math.cos((s / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (0, t)]
        assert schedule.alpha_bar[t].item() == pytest.approx(f[1] / f[0], rel=1e-5)
    assert schedule.beta[1000].item() == pytest.approx(0.999)


def test_single_steps_compose_to_the_jump():
    """Mean factor and variance of t single steps are √ᾱ_t and 1 − ᾱ_t, exactly."""
    schedule = NoiseSchedule.linear(50)
    factor, variance = 1.0, 0.0
    for t in range(1, 51):
        keep = math.sqrt(1 - schedule.beta[t].item())
        factor, variance = keep * factor, keep**2 * variance + schedule.beta[t].item()
        assert factor == pytest.approx(schedule.sqrt_alpha_bar[t].item(), rel=1e-5)
        noise = schedule.sqrt_one_minus_alpha_bar[t].item() ** 2
        assert variance == pytest.approx(noise, rel=1e-5)


@every_schedule
@pytest.mark.parametrize("start", [0.0, 0.3, 4.0])
def test_the_share_that_is_left_says_how_far_the_variance_is_from_one(schedule, start):
    variance = start
    for t in range(1, schedule.T + 1):
        keep = schedule.alpha[t].item()
        variance = keep * variance + (1 - keep)
        left = schedule.alpha_bar[t].item() * (start - 1)
        assert variance - 1 == pytest.approx(left, rel=1e-4)


def test_simulated_steps_have_the_distribution_of_the_jump():
    schedule = NoiseSchedule.linear(50)
    generator = torch.Generator().manual_seed(0)
    n, x_0 = 20_000, 0.7
    x = torch.full((n,), x_0)
    for t in range(1, 31):
        beta = schedule.beta[t]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(n, generator=generator)
    t = torch.full((n,), 30, dtype=torch.int64)
    jump = schedule.add_noise(torch.full((n,), x_0), t, torch.randn(n, generator=generator))
    mean, std = schedule.sqrt_alpha_bar[30] * x_0, schedule.sqrt_one_minus_alpha_bar[30]
    for sample in (x, jump):
        assert stats.kstest(sample.numpy(), "norm", args=(mean.item(), std.item())).pvalue > 0.01


@pytest.mark.parametrize("t", [1, 2, 17, 50])
def test_posterior_is_bayes_rule_on_a_grid(t):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), by brute force."""
    schedule = NoiseSchedule.linear(50)
    x_0, x_t = torch.tensor([0.3]), torch.tensor([-0.4])
    mean, variance = schedule.posterior(x_0, x_t, ones(t))
    if t == 1:  # then x_{t-1} is x_0, with certainty
        assert mean.item() == pytest.approx(0.3) and variance.item() == 0
        return
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    before = (1 - schedule.beta[:t].double()).prod()
    beta = schedule.beta[t].double()
    log_prior = -((grid - before.sqrt() * x_0) ** 2) / (2 * (1 - before))
    log_likelihood = -((x_t - (1 - beta).sqrt() * grid) ** 2) / (2 * beta)
    weight = torch.softmax(log_prior + log_likelihood, 0)
    assert weight.sum().item() == pytest.approx(1)
    grid_mean = (weight * grid).sum()
    grid_variance = (weight * (grid - grid_mean) ** 2).sum()
    assert mean.item() == pytest.approx(grid_mean.item(), rel=1e-5)
    assert variance.item() == pytest.approx(grid_variance.item(), rel=1e-5)


def test_add_noise_leaves_its_arguments_alone():
    schedule = NoiseSchedule.linear()
    x_0, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    kept = x_0.clone(), noise.clone()
    schedule.add_noise(x_0, torch.tensor([3, 900]), noise)
    assert torch.equal(x_0, kept[0]) and torch.equal(noise, kept[1])


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        ([0.1, 1.0], r"beta must lie in \(0, 1\), got beta_2 = 1"),
        ([0.0, 0.1], "beta_1 = 0"),
        ([-0.1], "beta_1 = -0.1"),
        ([0.1, math.nan], "beta_2 = nan"),
        ([], r"shape \(T,\)"),
        ([[0.1]], r"got \(1, 1\)"),
        ([0.9] * 100, r"alpha_bar_T = exp\(-230\) is 0 in float32"),
    ],
)
def test_bad_beta_is_named(beta, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_beta(beta)


@pytest.mark.parametrize("T", [20, 0, 10.5, "1000"])
def test_bad_T_is_named(T):
    with pytest.raises(ValueError, match="T must be"):
        NoiseSchedule.linear(T)
    if T != 20:
        with pytest.raises(ValueError, match="T must be"):
            NoiseSchedule.cosine(T)


IMAGE = torch.zeros(2, 1, 4, 4)
BAD_CALLS = [
    (IMAGE, torch.tensor([0.5, 1.0]), IMAGE, TypeError, "t must be an int64 .* got torch.float32"),
    (IMAGE, 3, IMAGE, TypeError, "got int"),
    (IMAGE, torch.tensor([0, 1001]), IMAGE, ValueError, "0 … 1000, got 1001"),
    (IMAGE, torch.tensor([-1, 5]), IMAGE, ValueError, "got -1"),
    (IMAGE, torch.tensor([[1], [2]]), IMAGE, ValueError, r"t must have shape \(B,\)"),
    (IMAGE, torch.tensor([1, 2, 3]), IMAGE, ValueError, r"t must have shape \(2,\)"),
    (IMAGE, torch.tensor([1, 2]), IMAGE[:, 0], ValueError, "noise must have the shape of x_0"),
    (IMAGE * math.nan, torch.tensor([1, 2]), IMAGE, ValueError, "x_0 contains NaN"),
]


@pytest.mark.parametrize(("x_0", "t", "noise", "error", "message"), BAD_CALLS)
def test_bad_input_of_add_noise_is_named(x_0, t, noise, error, message):
    with pytest.raises(error, match=message):
        NoiseSchedule.linear().add_noise(x_0, t, noise)


def test_posterior_needs_a_step_to_undo():
    with pytest.raises(ValueError, match="1 … 1000, got 0"):
        NoiseSchedule.linear().posterior(IMAGE, IMAGE, torch.tensor([0, 1]))
