"""Parity with diffusers step by step, and exactness on Gaussian data."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusion_lib.exact import GaussianDenoiser
from diffusion_lib.objective import split
from diffusion_lib.sampling import ddim, ddpm, dpm_solver, log_snr_times, spaced_times
from diffusion_lib.schedule import NoiseSchedule

SHAPE = (2, 1, 4, 4)
OURS = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
THEIRS = {
    "linear": dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
}
each_schedule = pytest.mark.parametrize("name", ["linear", "cosine"])
each_clip = pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_model(seed):
    """A network with random answers, the same at every call with the same t."""
    return lambda x_t, t: torch.randn(x_t.shape, generator=generator(seed + int(t[0])))


def double_precision(scheduler):
    """The same scheduler with its tables in float64.

    Its own are a float32 cumprod, off by 1e-4 where ᾱ is near 1. With them the steps still
    agree, but only to 1.4e-5, of which theirs is the error.
    """
    betas = scheduler.betas.double()
    scheduler.alphas = 1 - betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.betas, scheduler.one = betas, torch.ones((), dtype=torch.float64)
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.one
    return scheduler


def assert_same(ours, theirs):
    """Within 1e-5, elementwise; of the largest value where random answers drive it past 1."""
    scale = max(1.0, ours.abs().max().item())
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5 * scale)


@each_schedule
@each_clip
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_equals_diffusers_at_every_step(name, clip, variance):
    kind = {"posterior": "fixed_small", "beta": "fixed_large"}[variance]
    theirs = double_precision(
        DDPMScheduler(1000, clip_sample=clip, variance_type=kind, **THEIRS[name])
    )
    schedule, model = OURS[name](), random_model(10_000)
    x_T = torch.randn(SHAPE, generator=generator(0))
    steps = ddpm(model, schedule, x_T, generator=generator(1), clip=clip, variance=variance)
    noise = generator(1)
    for (_, x, _), (s, ours, x_0_hat) in itertools.pairwise(steps):
        # Their timestep 0 is our t = 1. Each step starts from our x_t, so that every one is
        # compared by itself and an early difference cannot hide in a later one.
        step = theirs.step(model(x, torch.tensor([s + 1])), s, x, generator=noise)
        assert_same(ours, step.prev_sample)
        assert_same(x_0_hat, step.pred_original_sample)
    assert s == 0


@each_schedule
@each_clip
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers_at_every_step(name, clip, eta):
    theirs = double_precision(DDIMScheduler(1000, clip_sample=clip, **THEIRS[name]))
    theirs.set_timesteps(1000)
    schedule, model = OURS[name](), random_model(20_000)
    x_T = torch.randn(SHAPE, generator=generator(0))
    steps = ddim(model, schedule, x_T, steps=1000, eta=eta, generator=generator(1), clip=clip)
    noise = generator(1)
    for (_, x, _), (s, ours, _) in itertools.pairwise(steps):
        step = theirs.step(
            model(x, torch.tensor([s + 1])),
            s,
            x,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=torch.randn(SHAPE, generator=noise) if eta else None,
        )
        assert_same(ours, step.prev_sample)
    assert s == 0


@each_schedule
@each_clip
@pytest.mark.parametrize("steps", [10, 20, 1000])  # theirs treats fewer than 15 specially
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in theirs
def test_dpm_solver_equals_diffusers_at_every_step(name, clip, steps):
    theirs = double_precision(
        DPMSolverMultistepScheduler(
            1000,
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
            prediction_type="sample",
            **THEIRS[name],
        )
    )
    schedule, model = OURS[name](), random_model(30_000)
    theirs.set_timesteps(timesteps=[t - 1 for t in log_snr_times(schedule, steps)[:-1]])
    x_T = torch.randn(SHAPE, generator=generator(0))
    states = dpm_solver(model, schedule, x_T, steps=steps, target="data", clip=clip)
    for (t, x, _), (_, ours, x_0_hat) in itertools.pairwise(states):
        prediction = model(x, torch.tensor([t]))
        # Theirs has no plain clipping, so it is given what ours should have clipped to. It
        # starts each step from our x_t, and keeps the earlier predictions itself.
        prediction = prediction.clamp(-1, 1) if clip else prediction
        assert_same(ours, theirs.step(prediction, t - 1, x).prev_sample)
        assert torch.equal(x_0_hat, prediction)
    assert theirs.step_index == steps and theirs.sigmas[-1] == 0


MEAN, VARIANCE = torch.tensor([0.3]), torch.tensor([0.04])


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_with_the_exact_denoiser_draws_gaussian_data(variance):
    schedule, n = NoiseSchedule.linear(), 20_000
    model = GaussianDenoiser(schedule, MEAN, VARIANCE)
    x_T = torch.randn(n, 1, generator=generator(0))
    *_, last = ddpm(
        model,
        schedule,
        x_T,
        generator=generator(1),
        target="data",
        clip=False,
        variance=variance,
    )
    assert last.x_t.mean().item() == pytest.approx(0.3, abs=4 * 0.2 / n**0.5)
    # Four standard errors of a variance, and the bias of 1,000 steps, below 1 %.
    assert last.x_t.var().item() == pytest.approx(0.04, rel=4 * (2 / n) ** 0.5 + 0.01)


def flow_error(schedule, x_T, state):
    """Largest distance of a state from the exact flow that starts at x_T, in units of x₀.

    For Gaussian data the flow keeps the quantile: (x_t − mean_t) / std_t is constant.
    """

    def quantile(x_t, t):
        alpha_bar, noise = schedule.alpha_bar[t], schedule.sqrt_one_minus_alpha_bar[t]
        return (x_t - alpha_bar.sqrt() * MEAN) / (alpha_bar * VARIANCE + noise**2).sqrt()

    drift = quantile(state.x_t, state.t) - quantile(x_T, schedule.T)
    return (VARIANCE.sqrt() * drift).abs().max().item()


THREE_STARTS = torch.tensor([[-1.0], [0.5], [2.0]])


def gaussian_errors(sampler, schedule, x_T, **arguments):
    """The error of each state of a sampler that is given the exact denoiser."""
    model = GaussianDenoiser(schedule, MEAN, VARIANCE)
    states = sampler(model, schedule, x_T, target="data", clip=False, **arguments)
    return [flow_error(schedule, x_T, state) for state in states]


def test_ddim_follows_the_exact_flow_with_order_one():
    schedule = NoiseSchedule.cosine(4000)
    errors = [
        gaussian_errors(ddim, schedule, THREE_STARTS, steps=steps)[-1]
        for steps in (20, 40, 80, 160)
    ]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.8 < ratio < 2.3 for ratio in ratios), (errors, ratios)


@each_schedule
def test_dpm_solver_follows_the_exact_flow_with_order_two(name):
    # The largest error on the way, over all states with t > 0. The jump to t = 0 is left out:
    # its error is not the solver's, it stays as large as the noise at t = 1 makes it. T is
    # large because integer times must stay even where steps are short.
    schedule = OURS[name](10_000)
    errors = [
        max(gaussian_errors(dpm_solver, schedule, THREE_STARTS, steps=steps)[:-1])
        for steps in (10, 20, 40, 80, 160)
    ]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(3.6 < ratio < 4.5 for ratio in ratios), (errors, ratios)


@each_schedule
def test_dpm_solver_at_20_steps_is_as_exact_as_ddim_at_200(name):
    schedule = OURS[name]()
    error = gaussian_errors(dpm_solver, schedule, THREE_STARTS, steps=20)[-1]
    assert error < gaussian_errors(ddim, schedule, THREE_STARTS, steps=200)[-1]
    assert error < 0.004  # of a standard deviation of 0.2


@each_schedule
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_first_steps_of_dpm_solver_leave_pure_noise_safely(name, steps):
    # At the end of the cosine schedule √SNR is 5e-5: λ leaps by 6 in the first step, and x̂₀ made
    # from ε̂ divides by √ᾱ.
    schedule = OURS[name]()
    exact = GaussianDenoiser(schedule, MEAN, VARIANCE)

    def noise_hat(x_t, t):  # of the same denoiser
        return split(exact(x_t, t), "data", schedule, x_t, t)[1]

    states = list(dpm_solver(noise_hat, schedule, THREE_STARTS, steps=steps, clip=False))
    errors = [flow_error(schedule, THREE_STARTS, state) for state in states]
    assert errors[1] < 1e-4 and errors[2] < 1e-3 and errors[-1] < 0.01, errors

    def bad_noise_hat(x_t, t):  # x̂₀ at T off by 10 or more, by 1,000 with the cosine schedule
        return noise_hat(x_t, t) + 0.06

    bad = list(dpm_solver(bad_noise_hat, schedule, THREE_STARTS, steps=steps))
    # Clipped x̂₀ are at most 2 apart, and count for √ᾱ_s at most.
    reach = 2 * schedule.sqrt_alpha_bar[bad[1].t]
    assert (bad[1].x_t - states[1].x_t).abs().max() < reach
    assert all(state.x_t.abs().max() < 3 for state in bad)


@each_schedule
def test_dpm_solver_at_20_steps_draws_gaussian_data(name):
    schedule, n = OURS[name](), 20_000
    model = GaussianDenoiser(schedule, MEAN, VARIANCE)
    x_T = torch.randn(n, 1, generator=generator(0))
    *_, last = dpm_solver(model, schedule, x_T, steps=20, target="data", clip=False)
    assert last.x_t.mean().item() == pytest.approx(0.3, abs=4 * 0.2 / n**0.5)
    # Four standard errors of a variance, and the solver's bias at 20 steps, below 2 %.
    assert last.x_t.var().item() == pytest.approx(0.04, rel=4 * (2 / n) ** 0.5 + 0.02)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    normal = 2**0.5 * torch.erfinv(2 * levels - 1)
    wanted = 0.3 + 0.2 * normal
    # A quantile's standard error, at most 2.1 σ/√n between these levels, and the solver's bias.
    torch.testing.assert_close(
        last.x_t.flatten().quantile(levels), wanted, rtol=0, atol=0.2 * (4 * 2.1 / n**0.5 + 0.02)
    )


def test_one_step_of_dpm_solver_is_one_step_of_ddim():
    schedule, model = NoiseSchedule.cosine(), random_model(0)
    x_T = torch.randn(SHAPE, generator=generator(0))
    first, last = dpm_solver(model, schedule, x_T, steps=1)
    *_, wanted = ddim(model, schedule, x_T, steps=1)
    assert (first.t, last.t) == (1000, 0) and torch.equal(first.x_t, x_T)
    assert torch.equal(last.x_t, wanted.x_t) and torch.equal(last.x_0_hat, wanted.x_0_hat)


def test_ddim_at_eta_one_has_the_moments_of_the_data():
    schedule, n = NoiseSchedule.linear(), 20_000
    model = GaussianDenoiser(schedule, MEAN, VARIANCE)
    x_T = torch.randn(n, 1, generator=generator(0))
    *_, last = ddim(
        model,
        schedule,
        x_T,
        steps=1000,
        eta=1.0,
        generator=generator(1),
        target="data",
        clip=False,
    )
    assert last.x_t.mean().item() == pytest.approx(0.3, abs=4 * 0.2 / n**0.5)
    assert last.x_t.var().item() == pytest.approx(0.04, rel=4 * (2 / n) ** 0.5 + 0.01)


def test_samplers_yield_every_state_from_T_to_0():
    schedule, x_T = NoiseSchedule.linear(50), torch.randn(SHAPE, generator=generator(0))
    kept = x_T.clone()
    states = list(ddpm(random_model(0), schedule, x_T, generator=generator(1)))
    assert [state.t for state in states] == list(range(50, -1, -1))
    assert states[0].x_0_hat is None and torch.equal(states[0].x_t, kept)
    assert all(state.x_0_hat.abs().max() <= 1 for state in states[1:])
    # The last step adds no noise: x_0 is exactly the last prediction.
    torch.testing.assert_close(states[-1].x_t, states[-1].x_0_hat)
    states = list(ddim(random_model(0), schedule, x_T, steps=7))
    assert [state.t for state in states] == spaced_times(50, 7) and len(states) == 8
    torch.testing.assert_close(states[-1].x_t, states[-1].x_0_hat)
    states = list(dpm_solver(random_model(0), schedule, x_T, steps=7))
    assert [state.t for state in states] == log_snr_times(schedule, 7) and len(states) == 8
    assert states[0].x_0_hat is None and torch.equal(states[0].x_t, kept)
    assert all(state.x_0_hat.abs().max() <= 1 for state in states[1:])
    assert torch.equal(states[-1].x_t, states[-1].x_0_hat)


@each_schedule
def test_log_snr_times_are_distinct_and_as_even_as_promised(name):
    schedule = OURS[name](1000)
    for steps in [*range(1, 100), 500, 998, 999, 1000]:
        times = log_snr_times(schedule, steps)
        assert times[0] == 1000 and times[-1] == 0 and len(times) == steps + 1
        assert all(s < t for t, s in itertools.pairwise(times)), (steps, times)
    assert times == list(range(1000, -1, -1))
    assert log_snr_times(NoiseSchedule.cosine(1), 1) == [1, 0]
    # Where rounding to integers does not show, each step is the same in ln(√SNR + 0.05), and
    # the last one ends at t = 1 but for the jump to 0.
    schedule = OURS[name](40_000)
    times = torch.tensor([*log_snr_times(schedule, 10)[:-1], 1])
    u = (schedule.snr[times].sqrt() + 0.05).log()
    assert u.diff().max() / u.diff().min() < 1.07, (times, u.diff())


def test_labels_reach_the_model():
    seen = []

    def model(x_t, t, y):
        seen.append(y)
        return x_t

    y = torch.tensor([4, 7])
    x_T = torch.randn(SHAPE, generator=generator(0))
    list(ddim(model, NoiseSchedule.linear(50), x_T, steps=2, y=y))
    list(ddpm(model, NoiseSchedule.linear(50), x_T, generator=generator(1), y=y))
    list(dpm_solver(model, NoiseSchedule.linear(50), x_T, steps=3, y=y))
    assert len(seen) == 55 and all(torch.equal(labels, y) for labels in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0), "steps must lie in 1 … 50, got 0"),
        (dict(steps=51), "got 51"),
        (dict(steps=5, eta=1.5), "eta must lie in 0 … 1, got 1.5"),
        (dict(steps=5, eta=0.5), "eta = 0.5 draws noise: give a generator"),
        (dict(steps=5, target="score"), "target must be one of"),
    ],
)
def test_bad_input_of_ddim_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(ddim(random_model(0), NoiseSchedule.linear(50), torch.zeros(SHAPE), **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0), "steps must lie in 1 … 50, got 0"),
        (dict(steps=51), "steps must lie in 1 … 50, got 51"),
        (dict(steps=5, target="score"), "target must be one of noise, data, velocity, got 'score'"),
    ],
)
def test_bad_input_of_dpm_solver_is_named(arguments, message):
    states = dpm_solver(random_model(0), NoiseSchedule.linear(50), torch.zeros(SHAPE), **arguments)
    with pytest.raises(ValueError, match=message):
        next(states)


def test_bad_variance_of_ddpm_is_named():
    states = ddpm(
        random_model(0),
        NoiseSchedule.linear(50),
        torch.zeros(SHAPE),
        generator=generator(0),
        variance="learned",
    )
    with pytest.raises(ValueError, match="variance must be 'posterior' or 'beta', got 'learned'"):
        next(states)
