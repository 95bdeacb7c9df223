"""Parity with diffusers step by step, and exactness on Gaussian data."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion_lib.exact import GaussianDenoiser
from diffusion_lib.sampling import ddim, ddpm, spaced_times
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


def ddim_error(steps):
    """Largest error of DDIM's end point against the exact flow, for three starts."""
    schedule = NoiseSchedule.cosine(4000)
    model = GaussianDenoiser(schedule, MEAN, VARIANCE)
    x_T = torch.tensor([[-1.0], [0.5], [2.0]])
    *_, last = ddim(model, schedule, x_T, steps=steps, target="data", clip=False)
    # For Gaussian data the flow keeps the quantile: (x_t − mean_t) / std_t is constant.
    alpha_bar = schedule.alpha_bar[-1]
    std_T = (alpha_bar * VARIANCE + 1 - alpha_bar).sqrt()
    exact = MEAN + VARIANCE.sqrt() * (x_T - alpha_bar.sqrt() * MEAN) / std_T
    return (last.x_t - exact).abs().max().item()


def test_ddim_follows_the_exact_flow_with_order_one():
    errors = [ddim_error(steps) for steps in (20, 40, 80, 160)]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.8 < ratio < 2.3 for ratio in ratios), (errors, ratios)


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


def test_labels_reach_the_model():
    seen = []

    def model(x_t, t, y):
        seen.append(y)
        return x_t

    y = torch.tensor([4, 7])
    x_T = torch.randn(SHAPE, generator=generator(0))
    list(ddim(model, NoiseSchedule.linear(50), x_T, steps=2, y=y))
    list(ddpm(model, NoiseSchedule.linear(50), x_T, generator=generator(1), y=y))
    assert len(seen) == 52 and all(torch.equal(labels, y) for labels in seen)


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
