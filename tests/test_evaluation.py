"""Each measure on data where the answer is known."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffusion_lib.classifier import load_classifier
from diffusion_lib.data import Dataset, load, to_float
from diffusion_lib.evaluation import (
    bits_per_dim,
    bootstrap,
    error_by_level,
    features,
    frechet_distance,
    likelihood_bounds,
    nearest,
    precision_recall,
    sample_quality,
    step_weights,
)
from diffusion_lib.exact import GaussianDenoiser, dataset_denoiser
from diffusion_lib.objective import make_target
from diffusion_lib.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.cosine()
MEAN, VARIANCE = 0.1, 0.04  # of Gaussian images, five standard deviations inside [-1, 1]
LN_2 = math.log(2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian_images(n, side=4, seed=0):
    # Not the seed's own first numbers, which the noise may be made of.
    x = MEAN + VARIANCE**0.5 * draw(n, 1, side, side, seed=1000 + seed)
    images = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Dataset("gaussian", images, torch.zeros(n, dtype=torch.int64))


def digits(n, train=False):
    full = load("digits", train=train)
    return Dataset("digits", full.images[:n], full.labels[:n])


def gaussian_denoiser(schedule=SCHEDULE):
    return GaussianDenoiser(schedule, torch.tensor(MEAN), torch.tensor(VARIANCE))


def gaussian_error(schedule, variance):
    """E|x₀ − x̂₀|² of one dimension at every level, in closed form: float64, (T + 1,)."""
    return variance / (1 + variance * schedule.log_snr.double().exp())


# --- error by level ---------------------------------------------------------------------------


def test_the_exact_denoiser_of_gaussian_images_has_its_closed_form_error():
    levels = [1, 100, 400, 700, 1000]
    # 64,000 pixels: a mean square within 3 % at five standard errors.
    images = gaussian_images(1000, side=8)
    got = error_by_level(gaussian_denoiser(), SCHEDULE, images, target="data", levels=levels)
    near = dict(rtol=0.03, atol=1e-7)
    error = gaussian_error(SCHEDULE, VARIANCE)[levels]
    torch.testing.assert_close(got["data"], error, **near)
    torch.testing.assert_close(got["noise"], error * SCHEDULE.snr[levels].double(), **near)
    torch.testing.assert_close(got["data_clipped"], error, **near)  # there is nothing to clip
    torch.testing.assert_close(got["data_trivial"], torch.full_like(error, VARIANCE), **near)
    signal = SCHEDULE.alpha_bar[levels].double()
    trivial = signal * (VARIANCE + MEAN**2) + (1 - (1 - signal).sqrt()) ** 2
    torch.testing.assert_close(got["noise_trivial"], trivial, **near)
    assert got["t"].tolist() == levels
    assert all(got[name].dtype == torch.float64 for name in got if name != "t")


@pytest.mark.parametrize("target", ["noise", "data", "velocity"])
def test_an_oracle_makes_no_error(target):
    image = digits(1).images
    dataset = Dataset("one", image.expand(20, -1, -1, -1), torch.zeros(20, dtype=torch.int64))
    x_0 = to_float(image)

    def oracle(x_t, t):
        signal, sigma = SCHEDULE.sqrt_alpha_bar[t], SCHEDULE.sqrt_one_minus_alpha_bar[t]
        noise = (x_t - signal.view(-1, 1, 1, 1) * x_0) / sigma.view(-1, 1, 1, 1)
        return make_target(target, SCHEDULE, x_0.expand_as(x_t), t, noise)

    got = error_by_level(oracle, SCHEDULE, dataset, target=target, levels=[1, 300, 900])
    for name in ("noise", "data", "data_clipped", "noise_floor", "data_floor", "data_trivial"):
        assert got[name].max() < 1e-8, name
    assert got["noise_trivial"].min() > 1e-4


def test_no_model_is_below_the_floor_and_the_exact_denoiser_of_the_images_is_on_it():
    dataset = digits(252)
    x_0 = to_float(dataset.images)
    levels = [200, 500, 700, 850, 950]
    score = dict(target="data", levels=levels)
    floor = error_by_level(dataset_denoiser(SCHEDULE, x_0), SCHEDULE, dataset, **score)
    torch.testing.assert_close(floor["data"], floor["data_floor"], rtol=0, atol=0)
    torch.testing.assert_close(floor["noise"], floor["noise_floor"], rtol=0, atol=0)
    others = {
        "mean": lambda x_t, t: x_0.mean(0).expand_as(x_t),
        "linear": GaussianDenoiser(SCHEDULE, x_0.mean(0), x_0.var(0) + 1e-3),
        "other images": dataset_denoiser(SCHEDULE, to_float(load("digits").images)),
        "half the images": dataset_denoiser(SCHEDULE, x_0[::2]),
        "input": lambda x_t, t: x_t,
        "too bright": lambda x_t, t: torch.full_like(x_t, 3),
    }
    for name, model in others.items():
        got = error_by_level(model, SCHEDULE, dataset, **score)
        for kind in ("data", "noise"):
            # The same draws for every model, whatever it is.
            torch.testing.assert_close(got[f"{kind}_floor"], floor[f"{kind}_floor"])
            assert (got[kind] > got[f"{kind}_floor"]).all(), name
        assert (got["data_clipped"] <= got["data"] * (1 + 1e-6)).all(), name
        assert (got["data_clipped"] >= got["data_floor"]).all(), name
    bright = (1 - x_0.double()).square().mean().expand(len(levels))
    torch.testing.assert_close(got["data_clipped"], bright)  # of the last model
    assert (floor["data_floor"] < floor["data_trivial"] * 1.01).all()
    assert (floor["data_floor"][:-1] < floor["data_floor"][1:]).all()


def test_the_floor_of_a_model_of_labels_knows_the_label():
    dataset = digits(252)
    x_0, t = to_float(dataset.images), [500, 800, 950]
    by_label = {
        y: dataset_denoiser(SCHEDULE, x_0[dataset.labels == y])
        for y in dataset.labels.unique().tolist()
    }

    class Labelled:
        classes = 10

        def __call__(self, x_t, t, y):
            each = zip(x_t.split(1), t.split(1), y.tolist(), strict=True)
            return torch.cat([by_label[label](x, at) for x, at, label in each])

    got = error_by_level(Labelled(), SCHEDULE, dataset, target="data", levels=t)
    torch.testing.assert_close(got["data"], got["data_floor"], rtol=1e-4, atol=1e-7)
    plain = error_by_level(lambda x, t: x, SCHEDULE, dataset, target="data", levels=t)
    assert (got["data_floor"] < plain["data_floor"]).all()


def test_the_seed_fixes_images_and_noise():
    model, seen = gaussian_denoiser(), []

    def watched(x_t, t):
        seen.append(len(x_t))
        return model(x_t, t)

    score = dict(target="data", levels=[100, 900])
    state = torch.get_rng_state()
    one, same, other = (
        error_by_level(watched, SCHEDULE, digits(252), seed=seed, limit=60, **score)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [60] * 6
    assert all(torch.equal(one[name], same[name]) for name in one)
    # Another seed takes other images too, and the mean image tells.
    assert not torch.equal(one["data_trivial"], other["data_trivial"])


# --- bits per dimension -----------------------------------------------------------------------


def log_spaced(T, start=14.0, end=-14.0):
    """A schedule evenly spaced in ln SNR, so near to clean and to noise that only steps count."""
    log_snr = torch.linspace(start, end, T, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), log_snr.sigmoid()])
    return NoiseSchedule.from_beta(1 - alpha_bar[1:] / alpha_bar[:-1])


def closed_form_bounds(schedule, mean, variance):
    """The two bounds for N(mean, diag(variance)) and its exact denoiser, in nats, float64."""
    error = sum(gaussian_error(schedule, v) for v in variance.tolist())
    steps, integral = step_weights(schedule)
    end = schedule.log_snr[-1].double()
    squared = (mean**2 + variance).sum()
    prior = (end.sigmoid() * (squared - len(mean)) - len(mean) * (-end).sigmoid().log()) / 2
    # β_1 = 1 − ᾱ_1 from the same table as the errors.
    beta_1 = (-schedule.log_snr[1].double()).sigmoid()
    error[0] = 0
    return likelihood_bounds(
        error[1], steps @ error, integral @ error, prior, len(mean), beta_1.item()
    )


@pytest.mark.parametrize(
    "variance", [[0.3], [1.0], [0.05, 0.3, 1.7]], ids=["narrow", "standard", "three dimensions"]
)
def test_both_bounds_find_the_entropy_of_a_gaussian(variance):
    variance = torch.tensor(variance, dtype=torch.float64)
    mean = torch.full_like(variance, 0.2)
    entropy = 0.5 * (2 * math.pi * math.e * variance).log().sum().item()
    gaps = []
    for T in (500, 2000, 8000):
        variational, information = closed_form_bounds(log_spaced(T), mean, variance)
        assert abs(information - entropy) < 1e-6
        gaps.append(variational - entropy)
    # From above, and four times nearer with four times the steps.
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert 3.5 < gaps[0] / gaps[1] < 4.5 and 3.5 < gaps[1] / gaps[2] < 4.5


def test_ends_far_from_clean_and_from_noise_leave_upper_bounds():
    mean, variance = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.3])
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.3)
    _, tight = closed_form_bounds(log_spaced(2000), mean, variance)
    _, noisy_start = closed_form_bounds(log_spaced(2000, start=1.0), mean, variance)
    _, clean_end = closed_form_bounds(log_spaced(2000, end=-1.0), mean, variance)
    # One dimension: a Gaussian decoder is the exact one, so a noisy start costs nothing.
    assert abs(tight - entropy) < 1e-6 and abs(noisy_start - entropy) < 1e-6
    assert clean_end > entropy + 0.02
    # Two unequal dimensions share one variance of the decoder, and pay for it.
    mean, variance = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([0.02, 1.0])
    entropy = 0.5 * (2 * math.pi * math.e * variance).log().sum().item()
    assert closed_form_bounds(log_spaced(2000, start=1.0), mean, variance)[1] > entropy + 0.1


def expected_bits(schedule):
    """The two bounds for `gaussian_images` under `gaussian_denoiser`, in bits per dimension."""
    # Rounding and dequantisation each add the variance of a uniform bin.
    actual = VARIANCE + 2 / (12 * 127.5**2)
    snr, signal = schedule.snr.double(), schedule.alpha_bar.double()
    gain = VARIANCE * snr / (1 + VARIANCE * snr)  # of x_t/√ᾱ in x̂₀
    error = (1 - gain) ** 2 * actual + gain**2 / snr
    error[0] = 0
    steps, integral = step_weights(schedule)
    prior = (signal[-1] * (actual + MEAN**2 - 1) - (1 - signal[-1]).log()) / 2
    bounds = likelihood_bounds(
        error[1], steps @ error, integral @ error, prior, 1, schedule.beta[1].item()
    )
    return [nats / LN_2 + math.log2(127.5) for nats in bounds]


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(200), SCHEDULE], ids=["linear", "cosine"]
)
def test_bits_per_dim_is_the_entropy_of_gaussian_images_within_its_interval(schedule):
    """Twenty sets of images: no bias, and the interval says how far off one estimate is."""
    model = gaussian_denoiser(schedule)
    variational, information = expected_bits(schedule)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE) + math.log2(127.5)
    assert abs(information - entropy) < 0.01 and entropy < variational < entropy + 1.2
    off, gaps = {"variational": [], "information": []}, []
    for seed in range(20):
        got = bits_per_dim(
            model, schedule, gaussian_images(400, seed=seed), target="data", seed=seed
        )
        for name, expected in (("variational", variational), ("information", information)):
            value, low, high = (got[name][key] for key in ("value", "low", "high"))
            assert low < value < high < low + 0.3
            off[name].append((value - expected) / ((high - low) / 3.92))
        gaps.append(got["variational"]["value"] - got["information"]["value"])
    for name, z in off.items():
        z = torch.tensor(z)
        assert abs(z.mean()) < 4 / 20**0.5, name
        assert 0.4 < z.square().mean() < 2.2, name
    # They use the same draws, so that their difference is known better than they are.
    gaps = torch.tensor(gaps) - (variational - information)
    assert abs(gaps.mean()) < 0.02 and gaps.std() < 0.025


def test_what_is_known_of_a_pixel_costs_a_quarter_bit():
    """A Gaussian decoder of evenly spread pixels: ½ log₂(2πe/12) bits too many."""
    images = Dataset("grey", torch.full((200, 1, 8, 8), 77, dtype=torch.uint8), torch.arange(200))
    known = to_float(images.images[:1])
    got = bits_per_dim(lambda x, t: known.expand_as(x), SCHEDULE, images, target="data")
    expected = 0.5 * math.log2(2 * math.pi * math.e / 12)
    assert got["parts"]["decoder_fitted"] == pytest.approx(expected, abs=0.02)


def test_the_parts_add_up_and_the_draws_repeat():
    dataset, model = digits(100), gaussian_denoiser()
    score = dict(target="data", limit=80, draws=3, resamples=20)
    got, same, other = (bits_per_dim(model, SCHEDULE, dataset, seed=s, **score) for s in (0, 0, 1))
    parts = got["parts"]
    for name, decoder, middle in (
        ("variational", "decoder", "steps"),
        ("information", "decoder_fitted", "integral"),
    ):
        total = parts[decoder] + parts[middle] + parts["prior"]
        assert total == pytest.approx(got[name]["value"], rel=1e-9)
    assert parts["decoder_fitted"] <= parts["decoder"]
    assert got == same and got != other
    assert (got["images"], got["draws"]) == (80, 3)
    json.dumps(got)


def test_more_steps_lower_only_the_variational_bound():
    few, many = (
        bits_per_dim(gaussian_denoiser(s), s, gaussian_images(500), target="data", draws=16)
        for s in (log_spaced(30, 9, -9), log_spaced(1000, 9, -9))
    )
    assert few["variational"]["value"] > many["variational"]["value"] + 0.2
    assert few["information"]["value"] == pytest.approx(many["information"]["value"], abs=0.03)


def test_a_model_of_labels_is_given_them():
    dataset, seen = digits(40), []

    class Labelled:
        classes = 10

        def __call__(self, x_t, t, y):
            seen.append(y)
            return torch.zeros_like(x_t)

    bits_per_dim(Labelled(), SCHEDULE, dataset, target="data", draws=2)
    assert len(seen) == 3 and all(torch.equal(y, dataset.labels) for y in seen)


# --- Fréchet distance -------------------------------------------------------------------------


def exact_moments(n, mean, covariance, seed=0):
    """n rows whose sample mean and covariance are as given, to rounding."""
    x = draw(n, len(mean), seed=seed).double()
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False
    )
    return mean + white.T @ torch.linalg.cholesky(covariance).T


def random_covariance(seed, dims=5):
    root = draw(dims, dims, seed=seed).double()
    return root @ root.T + 0.1 * torch.eye(dims)


def test_frechet_distance_in_one_dimension():
    a, b = 0.3 + 2 * draw(50, 1), -1 + 0.5 * draw(80, 1, seed=1)
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_of_commuting_covariances():
    axes = torch.linalg.qr(draw(4, 4, seed=2).double()).Q
    first, second = (torch.tensor(v, dtype=torch.float64) for v in ([1, 4, 9, 0.25], [4, 1, 9, 1]))
    a = exact_moments(30, torch.zeros(4), axes * first @ axes.T)
    b = exact_moments(40, torch.full((4,), 0.5), axes * second @ axes.T, seed=1)
    expected = 4 * 0.25 + (first.sqrt() - second.sqrt()).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_any_covariances_is_scipys():
    one, two = random_covariance(3), random_covariance(4)
    mean = draw(5, seed=5).double()
    a, b = exact_moments(50, mean, one), exact_moments(60, -mean, two, seed=1)
    cross = np.trace(sqrtm(one.numpy() @ two.numpy()).real)
    expected = 4 * mean.square().sum() + one.trace() + two.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_of_equal_and_of_shifted_sets():
    a = exact_moments(200, torch.zeros(5), random_covariance(6))
    shift = torch.tensor([1.0, -2, 0, 0, 2])
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-6
    assert frechet_distance(a, a + shift) == pytest.approx(9, rel=1e-6)
    constant = torch.zeros(200, 5)  # a covariance of zeros
    assert frechet_distance(a, constant) == pytest.approx(random_covariance(6).trace().item())


# --- precision, recall, neighbours ------------------------------------------------------------


def covered_by_hand(points, reference, k):
    count = 0
    for p in points:
        for i, r in enumerate(reference):
            others = np.delete(reference, i, axis=0)
            radius = np.sort(np.linalg.norm(others - r, axis=1))[k - 1]
            if np.linalg.norm(p - r) <= radius:
                count += 1
                break
    return count / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_follow_their_definition(k):
    real, generated = draw(60, 3), 0.5 + 0.8 * draw(50, 3, seed=1)
    precision, recall = precision_recall(real, generated, k)
    a, b = real.double().numpy(), generated.double().numpy()
    assert precision == pytest.approx(covered_by_hand(b, a, k))
    assert recall == pytest.approx(covered_by_hand(a, b, k))
    assert 0 < precision < 1 and 0 < recall < 1 and precision != recall


def test_precision_and_recall_of_equal_disjoint_and_nested_sets():
    real = draw(1100, 4)  # three chunks
    assert precision_recall(real, real.flip(0)) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    wide = 10 * torch.rand(1100, 2, generator=torch.Generator().manual_seed(0))
    inside = 4.5 + torch.rand(1100, 2, generator=torch.Generator().manual_seed(1))
    precision, recall = precision_recall(wide, inside)
    assert precision > 0.95 and recall < 0.03  # a hundredth of the area
    assert precision_recall(inside, wide) == (recall, precision)


def test_nearest_is_the_brute_force_neighbour():
    images, training = draw(1100, 2, 3, 3), draw(700, 2, 3, 3, seed=1)
    distance, rows = nearest(images, training)
    difference = images[:, None].double() - training[None].double()
    expected = difference.square().flatten(2).sum(2).sqrt().min(1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(distance.double(), expected.values, rtol=1e-6, atol=0)


def test_nearest_of_images_almost_alike_is_not_left_to_rounding():
    base = draw(1, 3, 32, 32).sign()
    images, training = (base + 1e-3 * draw(n, 3, 32, 32, seed=n) for n in (100, 8))
    difference = images[:, None].double() - training[None].double()
    expected = difference.square().flatten(2).sum(2).min(1).indices
    assert torch.equal(nearest(images, training)[1], expected)


def test_nearest_of_a_copy_is_at_distance_zero():
    training = load("digits").images
    distance, rows = nearest(training[100:110], training)
    assert torch.equal(rows, torch.arange(100, 110)) and (distance == 0).all()
    # One grey level of one pixel is 1/127.5; bytes and floats are the same images.
    near = training[100:110].clone()
    near[:, 0, 3, 3] ^= 1
    for a, b in ((near, training), (to_float(near), training), (near, to_float(training))):
        distance, rows = nearest(a, b)
        assert torch.equal(rows, torch.arange(100, 110))
        torch.testing.assert_close(distance, torch.full((10,), 1 / 127.5), rtol=1e-5, atol=0)


# --- intervals --------------------------------------------------------------------------------


def test_the_interval_covers_a_known_mean_95_times_in_100():
    covers = 0
    for seed in range(300):
        low, high = bootstrap(lambda x: x.mean(), draw(60, seed=seed), resamples=60, seed=seed)
        covers += low < 0 < high
    assert 0.9 < covers / 300 < 0.98


def test_the_interval_of_a_mean_is_its_standard_error():
    sample = draw(400)
    low, high = bootstrap(lambda x: x.mean(), sample, resamples=2000)
    assert (low + high) / 2 == pytest.approx(sample.mean().item(), abs=1e-6)
    assert high - low == pytest.approx(2 * 1.96 * sample.std().item() / 20, rel=0.06)
    assert (low, high) == bootstrap(lambda x: x.mean(), sample, resamples=2000)
    assert (low, high) != bootstrap(lambda x: x.mean(), sample, resamples=2000, seed=1)
    # Two samples are drawn from apart: variances add.
    low, high = bootstrap(lambda a, b: a.mean() - b.mean(), sample, sample, resamples=2000)
    assert high - low == pytest.approx(2 * 1.96 * (2 * sample.var().item() / 400) ** 0.5, rel=0.06)


def frechet_of_two(shift, dims, seed):
    return [draw(200, dims, seed=2 * seed), shift + draw(200, dims, seed=2 * seed + 1)]


def test_the_interval_of_a_frechet_distance_is_as_wide_as_its_chance():
    values, errors = [], []
    for seed in range(30):
        samples = frechet_of_two(0.5, 6, seed)
        low, high = bootstrap(frechet_distance, *samples, resamples=25, seed=seed)
        values.append(frechet_distance(*samples))
        errors.append((high - low) / 3.92)
    assert torch.tensor(values).mean() > 6 * 0.25  # the truth, and a bias
    assert torch.tensor(values).std() == pytest.approx(sum(errors) / 30, rel=0.35)


def test_percentiles_would_miss_a_frechet_distance():
    """Of two samples of one law: drawing again about doubles the distance, all of it bias."""
    for seed in range(5):
        samples = frechet_of_two(0.0, 16, seed)
        value = frechet_distance(*samples)
        again = []
        low, high = bootstrap(
            lambda a, b, again=again: again.append(frechet_distance(a, b)) or again[-1], *samples
        )
        assert torch.tensor(again[1:]).quantile(0.025) > value
        assert low < value < high


# --- samples ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out_quality():
    train, test = load("digits"), load("digits", train=False)
    return sample_quality(test.images, train, test, load_classifier("digits"), resamples=20)


def test_held_out_images_as_samples_are_at_the_floor(held_out_quality):
    got = held_out_quality
    assert (got["samples"], got["held_out"], got["training"]) == (252, 252, 1545)
    for name in ("frechet", "precision", "recall", "nearest"):
        assert got[name]["value"] == pytest.approx(got[f"{name}_floor"]["value"], rel=1e-6)
        assert got[name]["low"] <= got[name]["value"] <= got[name]["high"]
    assert got["classes"] == got["classes_held_out"] and sum(got["classes"]) == 252
    right = torch.tensor(got["classes"]) - load("digits", train=False).labels.bincount()
    assert right.abs().max() <= 4
    json.dumps(got)


def test_sample_quality_is_its_parts(held_out_quality):
    classifier, train, test = load_classifier("digits"), load("digits"), digits(252)
    expected = frechet_distance(
        features(classifier, test.images), features(classifier, train.images)
    )
    assert held_out_quality["frechet_floor"]["value"] == pytest.approx(expected, rel=1e-6)
    # The number itself: with other features, distances reported before would mean another thing.
    assert held_out_quality["frechet_floor"]["value"] == pytest.approx(0.6258, abs=2e-3)
    distances, _ = nearest(test.images, train.images)
    assert held_out_quality["nearest"]["value"] == distances.median()
    # Of so many training images too.
    assert 252 * held_out_quality["recall"]["value"] % 1 == pytest.approx(0, abs=1e-9)
    # Of 252 held-out images, those below the quantile of 1 %.
    assert held_out_quality["copies"]["value"] == pytest.approx(3 / 252)
    direct = classifier.features(to_float(test.images)).double()
    torch.testing.assert_close(features(classifier, test.images), direct, rtol=1e-5, atol=1e-5)


def test_samples_are_rounded_and_bad_ones_are_told(held_out_quality):
    train, test, classifier = load("digits"), load("digits", train=False), load_classifier("digits")
    again = dict(resamples=2)
    whole = sample_quality(to_float(test.images) * 1.0005, train, test, classifier, **again)
    assert whole["frechet"]["value"] == held_out_quality["frechet"]["value"]
    noise = sample_quality(draw(100, 1, 8, 8), train, test, classifier, **again)
    assert noise["samples"] == noise["held_out"] == 100
    assert noise["frechet"]["value"] > 3 * noise["frechet_floor"]["value"]
    assert noise["precision"]["value"] < 0.2 < 0.5 < noise["precision_floor"]["value"]
    # One image, over and over with a little noise: precise, but it recalls nothing.
    same = to_float(train.images[:1]) + 0.02 * draw(252, 1, 8, 8)
    one = sample_quality(same, train, test, classifier, seed=1, **again)
    assert one["recall"]["value"] < 0.1 < 0.5 < one["recall_floor"]["value"]
    # Another seed takes other training images to compare with.
    assert one["recall_floor"]["value"] != held_out_quality["recall_floor"]["value"]
    # Half of the noise on black pixels is clipped; without that the distance would be 0.02 · 8.
    assert 0.08 < one["nearest"]["value"] < 0.16
    assert one["copies"]["value"] == 1
    assert sorted(one["classes"])[:9] == [0] * 9
    # Training images, learnt by heart, beat the floor.
    copies = sample_quality(train.images, train, test, classifier, **again)
    assert copies["frechet"]["value"] < copies["frechet_floor"]["value"]
    assert copies["samples"] == sum(copies["classes"]) == 252
    assert copies["classes"] != train.labels[:252].bincount().tolist()  # not the first ones
    assert copies["nearest"]["value"] == 0 and copies["copies"]["value"] == 1
    # The floor is that of held-out images, at every call.
    for name in ("frechet", "precision", "recall", "nearest"):
        assert copies[f"{name}_floor"]["value"] == pytest.approx(
            held_out_quality[f"{name}_floor"]["value"], rel=1e-6
        )


# --- bad input --------------------------------------------------------------------------------

NAN = torch.full((9, 2), math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: frechet_distance(draw(64, 64), draw(100, 64)),
            "64 features need more than 64 images for a covariance, got 64 and 100",
        ),
        (lambda: frechet_distance(draw(9, 2), NAN), "features must be finite"),
        (
            lambda: frechet_distance(draw(9, 2), draw(9, 3)),
            r"shapes \(N, F\) and \(M, F\), got \(9, 2\) and \(9, 3\)",
        ),
        (lambda: precision_recall(draw(9, 2), draw(9, 3)), r"got \(9, 2\) and \(9, 3\)"),
        (lambda: precision_recall(draw(9, 2), NAN), "features must be finite"),
        (lambda: precision_recall(draw(9, 2), draw(3, 2)), "k must lie in 1 … 2, got 3"),
        (lambda: precision_recall(draw(9, 2), draw(9, 2), 0), "k must lie in 1 … 8, got 0"),
        (lambda: nearest(draw(2, 1, 4, 4), draw(2, 1, 8, 8)), r"got \(2, 1, 4, 4\) and"),
        (lambda: bootstrap(lambda x: x.mean(), draw(1)), "samples of 2 rows or more"),
        (lambda: bootstrap(lambda: 0), "samples of 2 rows or more"),
        (
            lambda: error_by_level(
                gaussian_denoiser(), SCHEDULE, digits(5), target="data", levels=[0, 5]
            ),
            "t must lie in 1 … 1000, got 0",
        ),
        (
            lambda: error_by_level(
                gaussian_denoiser(), SCHEDULE, digits(5), target="score", levels=[5]
            ),
            "target must be one of noise, data, velocity",
        ),
        (
            lambda: bits_per_dim(gaussian_denoiser(), SCHEDULE, digits(5), target="data", limit=0),
            "limit must be positive or None, got 0",
        ),
        (
            lambda: bits_per_dim(gaussian_denoiser(), SCHEDULE, digits(5), target="data", draws=0),
            "draws must be >= 1 and T >= 2, got 0 and 1000",
        ),
        (
            lambda: sample_quality(
                draw(99, 1, 4, 4), load("digits"), digits(9), load_classifier("digits")
            ),
            r"samples must have shape \(S, 1, 8, 8\) like the data, got \(99, 1, 4, 4\)",
        ),
        (
            lambda: sample_quality(
                draw(99, 1, 8, 8), load("digits"), digits(9), load_classifier("digits")
            ),
            "64 features need more than 64 images",
        ),
        (
            lambda: sample_quality(
                draw(99, 1, 8, 8), load("digits"), digits(99), load_classifier("digits"), k=0
            ),
            "k must lie in 1 … 98, got 0",
        ),
        (
            lambda: sample_quality(
                draw(99, 1, 8, 8) / 0, load("digits"), digits(99), load_classifier("digits")
            ),
            "samples must be finite",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
