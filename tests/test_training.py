"""Training against closed forms: the floor of the loss, the learning rate, the average."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn

from diffusion_lib.data import Dataset, load, to_float
from diffusion_lib.exact import GaussianDenoiser
from diffusion_lib.objective import make_target
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import TrainConfig, held_out_loss, train
from diffusion_lib.unet import UNet

TARGETS = ["noise", "data", "velocity"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_digits(n=8):
    digits = load("digits")
    return Dataset("tiny", digits.images[:n], digits.labels[:n])


def tiny_unet(**settings):
    return UNet(widths=(8, 16), blocks=1, **settings)


class Watch(nn.Module):
    """Answers `scale`, a single weight, for every pixel, and remembers what it was asked."""

    classes = None

    def __init__(self, scale=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.asked = []

    def forward(self, x_t, t, y=None):
        self.asked.append((x_t, t, y))
        return self.scale * torch.ones_like(x_t)

    def __deepcopy__(self, memo):
        return Watch(self.scale.item())


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_loss_falls_on_a_few_images():
    schedule, data, model = NoiseSchedule.cosine(), tiny_digits(), tiny_unet()
    config = TrainConfig(steps=150, batch_size=48, learning_rate=4e-3)
    start, losses = held_out_loss(model, schedule, data, "velocity"), []
    for state in train(model, schedule, data, config):
        losses.append(state.loss.item())
    # The network starts at zero, and v of digits has a mean square near 1.
    first, last = sum(losses[:5]) / 5, sum(losses[-30:]) / 30
    assert 0.8 < first < 1.2 and last < 0.5 * first
    assert state.step == len(losses) == 150
    assert state.model is model and state.average is not model
    for network in (state.model, state.average):
        assert held_out_loss(network, schedule, data, "velocity") < 0.6 * start


def run(steps=5, **changes):
    model = tiny_unet()
    config = TrainConfig(**{"steps": steps, "batch_size": 16, **changes})
    *_, end = train(model, NoiseSchedule.linear(), tiny_digits(), config)
    return weights(end.model), weights(end.average), end.loss


def test_the_seed_decides_everything():
    state = torch.get_rng_state()
    first = run(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, run(seed=1), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, run(seed=2), strict=True))


def test_the_yielded_state_is_the_state_after_the_update():
    """A state that lags a step would still hold the weights that it started from."""
    model = tiny_unet()
    before = weights(model)
    states = train(model, NoiseSchedule.linear(), tiny_digits(), TrainConfig(steps=3))
    for step, state in enumerate(states, start=1):
        assert state.step == step and state.loss.ndim == 0 and not state.loss.requires_grad
        assert not torch.equal(weights(state.model), before)
        before = weights(state.model)
    assert step == 3


@pytest.mark.parametrize("average_decay", [0.0, 0.3, 0.995])
def test_the_average_is_its_recursion_at_every_step(average_decay):
    """a_k = d_k a_{k-1} + (1 − d_k) w_k, d_k = min(average_decay, (1 + k) / (10 + k))."""
    model = tiny_unet(seed=3)
    wanted = weights(model).double()
    config = TrainConfig(steps=12, batch_size=8, average_decay=average_decay)
    for state in train(model, NoiseSchedule.linear(), tiny_digits(), config):
        decay = min(average_decay, (1 + state.step) / (10 + state.step))
        wanted = decay * wanted + (1 - decay) * weights(state.model).double()
        torch.testing.assert_close(weights(state.average).double(), wanted, rtol=1e-5, atol=1e-7)
        assert not any(p.requires_grad for p in state.average.parameters())
    assert (weights(state.average) - weights(state.model)).abs().max() > 1e-4 or not average_decay


def increments(config):
    """How far each update moves one weight whose gradient never changes.

    Far from its optimum the gradient is clipped to the length `clip_norm`, the same at every
    step, and then Adam moves the weight by exactly the learning rate.
    """
    model = Watch(1e4)
    path = [1e4] + [
        state.model.scale.item()
        for state in train(model, NoiseSchedule.linear(), tiny_digits(), config)
    ]
    return torch.tensor(path, dtype=torch.float64).diff()


@pytest.mark.parametrize(
    ("steps", "warmup", "used"), [(40, 10, 10), (40, 0, 0), (12, 50, 6), (1, 50, 0)]
)
def test_learning_rate_climbs_a_line_and_falls_half_a_cosine(steps, warmup, used):
    config = TrainConfig(steps=steps, warmup=warmup, learning_rate=0.5, batch_size=4)
    wanted = [0.5 * (k + 1) / used for k in range(used)]
    left = steps - used
    wanted += [0.25 * (1 + math.cos(math.pi * k / left)) for k in range(left)]
    torch.testing.assert_close(
        increments(config), -torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


def test_weight_decay_shrinks_by_learning_rate_times_decay():
    """AdamW (Loshchilov & Hutter 2019): w ← w (1 − lr · decay) − lr · (Adam's direction)."""
    config = TrainConfig(steps=4, warmup=0, learning_rate=0.5, weight_decay=0.01, batch_size=4)
    w, wanted = 1e4, []
    for k in range(4):
        rate = 0.25 * (1 + math.cos(math.pi * k / 4))
        wanted.append(-w * rate * 0.01 - rate)
        w += wanted[-1]
    torch.testing.assert_close(
        increments(config), torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_gradients_are_clipped_to_their_length():
    """Adam is blind to a common factor; unequal lengths from step to step are not common.

    One step of gradient 1e8, then small ones: unclipped, Adam's memory of the first would
    hold the weight still for long.
    """

    class Fickle(Watch):
        def forward(self, x_t, t, y=None):
            self.asked.append(t)
            factor = 1e8 if len(self.asked) == 1 else 1.0
            return factor * self.scale * torch.ones_like(x_t)

        def __deepcopy__(self, memo):
            return Fickle(self.scale.item())

    def moved(clip_norm):
        model = Fickle(5.0)
        config = TrainConfig(
            steps=10, warmup=0, learning_rate=1e-3, batch_size=16, clip_norm=clip_norm
        )
        path = [s.model.scale.item() for s in train(model, SHARP, tiny_digits(), config)]
        return abs(path[-1] - path[0])

    assert moved(1.0) > 4e-3
    assert moved(1e12) < 3e-3


# So little noise that every image can be read off x_t.
SHARP = NoiseSchedule.from_beta([1e-8] * 40)


def test_times_are_drawn_evenly_from_1_to_T():
    model = Watch()
    for _ in train(model, SHARP, tiny_digits(), TrainConfig(steps=40, batch_size=500)):
        pass
    t = torch.cat([t for _, t, _ in model.asked])
    counts = torch.bincount(t, minlength=41)
    assert len(t) == 20_000 and counts[0] == 0 and len(counts) == 41
    assert stats.chisquare(counts[1:].numpy()).pvalue > 0.01


def test_noise_is_standard_normal_and_new_for_every_image_and_step():
    schedule, model = NoiseSchedule.linear(), Watch()
    gray = Dataset("gray", torch.full((1, 1, 4, 4), 128).byte(), torch.zeros(1).long())
    for _ in train(model, schedule, gray, TrainConfig(steps=10, batch_size=100)):
        pass
    x_t, t = (torch.cat([asked[i] for asked in model.asked]) for i in (0, 1))
    signal = schedule.sqrt_alpha_bar[t].view(-1, 1, 1, 1) * to_float(gray.images)
    noise = (x_t - signal) / schedule.sqrt_one_minus_alpha_bar[t].view(-1, 1, 1, 1)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    flat = noise.flatten(1)
    # Two draws of 16 numbers are about √32 apart; the same noise used twice, not at all.
    assert torch.cdist(flat, flat).add(9 * torch.eye(1000)).min() > 0.5


@pytest.mark.parametrize("classes", [None, 100])
def test_labels_are_given_exactly_if_the_model_has_classes(classes):
    images = torch.arange(100).byte().view(100, 1, 1, 1).expand(100, 1, 2, 2)
    data, model = Dataset("x", images, 99 - torch.arange(100)), Watch()
    model.classes = classes
    for _ in train(model, SHARP, data, TrainConfig(steps=3, batch_size=50)):
        pass
    held_out_loss(model, SHARP, data, "noise")
    assert len(model.asked) == 4
    for x_t, _, y in model.asked:
        if classes is None:
            assert y is None
        else:
            shown = ((x_t[:, 0, 0, 0] + 1) * 127.5).round().long()
            assert torch.equal(y, 99 - shown)


def test_a_network_with_classes_trains():
    *_, end = train(
        tiny_unet(classes=10), NoiseSchedule.linear(), tiny_digits(), TrainConfig(steps=2)
    )
    assert end.loss.isfinite()


def test_a_diverging_run_stops_and_says_where():
    model, seen = tiny_unet(), []
    config = TrainConfig(steps=50, warmup=10, learning_rate=1e25, batch_size=8)
    with pytest.raises(FloatingPointError) as caught:
        for state in train(model, NoiseSchedule.linear(), tiny_digits(), config):
            seen.append((weights(state.model).clone(), copy.deepcopy(state.average)))
    step = len(seen) + 1
    rate = 1e25 * step / 10
    assert 1 < step <= 10
    message = str(caught.value)
    assert f"at step {step}, learning rate {rate:.2g}" in message
    assert "lower learning_rate" in message and ("nan" in message or "inf" in message)
    # Nothing was updated by the bad step.
    assert torch.equal(weights(model), seen[-1][0])
    assert torch.equal(weights(state.average), weights(seen[-1][1]))


# Gaussian data, the denoiser that is exact for it, and a model that can express it.
MEAN, STD = 0.2, 0.3
SMALL = NoiseSchedule.cosine(10)


def gaussian_data(n, seed):
    x = MEAN + STD * torch.randn(n, 1, 1, 1, generator=generator(seed))
    return Dataset("gaussian", ((x + 1) * 127.5).round().byte(), torch.zeros(n).long())


class Affine(nn.Module):
    """gain_t x_t + bias_t, with a gain and a bias of its own for every time."""

    classes = None

    def __init__(self, T):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.zeros(T + 1)), nn.Parameter(torch.zeros(T + 1))

    def forward(self, x_t, t):
        shape = (-1, 1, 1, 1)
        return self.gain[t].view(shape) * x_t + self.bias[t].view(shape)


def exact_model(target):
    """The best possible answer: x̂₀ = E[x₀ | x_t], and the target that it implies."""
    denoiser = GaussianDenoiser(SMALL, torch.tensor(MEAN), torch.tensor(STD**2))

    def model(x_t, t):
        x_0_hat = denoiser(x_t, t)
        signal = SMALL.sqrt_alpha_bar[t].view(-1, 1, 1, 1)
        noise_hat = (x_t - signal * x_0_hat) / SMALL.sqrt_one_minus_alpha_bar[t].view(-1, 1, 1, 1)
        return make_target(target, SMALL, x_0_hat, t, noise_hat)

    model.classes = None
    return model


def floor(target):
    """Mean over t = 1 … T of the smallest loss, in closed form."""
    a = SMALL.alpha_bar[1:].double()
    s = SMALL.sqrt_one_minus_alpha_bar[1:].double() ** 2
    variance = a * STD**2 + s  # of x_t
    return {
        "noise": a * STD**2 / variance,
        "data": s * STD**2 / variance,
        "velocity": STD**2 / variance,
    }[target].mean()


@pytest.mark.parametrize("target", TARGETS)
def test_training_reaches_the_floor_of_its_target(target):
    held_out = gaussian_data(20_000, seed=1)
    best = held_out_loss(exact_model(target), SMALL, held_out, target).item()
    assert best == pytest.approx(floor(target).item(), rel=0.05)
    model = Affine(SMALL.T)
    config = TrainConfig(steps=500, batch_size=256, learning_rate=0.05, target=target)
    *_, end = train(model, SMALL, gaussian_data(20_000, seed=2), config)
    reached = held_out_loss(end.average, SMALL, held_out, target).item()
    assert 0.995 * best < reached < 1.03 * best
    # It is not nothing: answering zero, or for another target, is far off.
    assert held_out_loss(Affine(SMALL.T), SMALL, held_out, target) > 1.2 * best
    for other in TARGETS:
        if other != target:
            assert held_out_loss(end.average, SMALL, held_out, other) > 1.2 * floor(other)


def test_held_out_loss_is_deterministic_and_touches_nothing():
    model, schedule, data = tiny_unet(), NoiseSchedule.linear(), load("digits", train=False)
    with torch.no_grad():
        model.head[-1].weight.normal_(generator=generator())
    state, kept = torch.get_rng_state(), weights(model)
    first = held_out_loss(model, schedule, data, "noise")
    assert first.ndim == 0 and not first.requires_grad
    assert torch.equal(held_out_loss(model, schedule, data, "noise"), first)
    assert not torch.equal(held_out_loss(model, schedule, data, "noise", seed=1), first)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(weights(model), kept)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [7, 2500])
def test_held_out_loss_is_the_mean_over_single_images(target, n):
    """By hand: read ε off each x_t, and average the squared errors one image at a time."""
    schedule, model = NoiseSchedule.linear(100), Watch(0.25)
    images = torch.randint(0, 256, (n, 1, 2, 2), generator=generator()).byte()
    data = Dataset("x", images, torch.zeros(n).long())
    loss = held_out_loss(model, schedule, data, target)
    x_t, t = (torch.cat([asked[i] for asked in model.asked]) for i in (0, 1))
    assert len(x_t) == n and t.min() >= 1 and t.max() <= 100
    total = 0.0
    for x_0, x, time in zip(to_float(images).double(), x_t.double(), t.tolist(), strict=True):
        a, s = (
            table[time].item()
            for table in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar)
        )
        noise = (x - a * x_0) / s
        wanted = {"noise": noise, "data": x_0, "velocity": a * noise - s * x_0}[target]
        total += (0.25 - wanted).square().mean().item()
    assert loss.item() == pytest.approx(total / n, rel=1e-4)


def test_held_out_times_are_even_over_1_to_T_and_do_not_follow_the_order_of_the_images():
    model, n = Watch(), 4000
    data = Dataset("x", torch.zeros(n, 1, 1, 1).byte(), torch.zeros(n).long())
    held_out_loss(model, SHARP, data, "noise")
    t = torch.cat([t for _, t, _ in model.asked])
    counts = torch.bincount(t, minlength=41)[1:]
    assert len(counts) == 40 and (counts == n / 40).all()
    assert abs(stats.pearsonr(t.numpy(), range(n)).statistic) < 4 / n**0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "steps must be positive, got 0"),
        (dict(batch_size=-1), "batch_size must be positive, got -1"),
        (dict(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (dict(learning_rate=math.nan), "learning_rate must be positive, got nan"),
        (dict(clip_norm=0), "clip_norm must be positive, got 0"),
        (dict(average_decay=1.0), r"average_decay must lie in \[0, 1\), got 1.0"),
        (dict(average_decay=-0.1), "average_decay must lie .* got -0.1"),
        (dict(target="score"), "target must be one of noise, data, velocity, got 'score'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
