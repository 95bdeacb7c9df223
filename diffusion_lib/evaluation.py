"""How good a model is: its error at every noise level, its bits per dimension, its samples.

Every number comes with what it should be held against: a trivial guess, a floor that nothing
can beat, or the same measure of real images. Intervals are all of one kind, see `bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from diffusion_lib.classifier import Classifier
from diffusion_lib.data import Dataset, to_float, to_uint8
from diffusion_lib.exact import dataset_denoiser
from diffusion_lib.objective import Target, bound_weight, prior_term, split, takes_labels
from diffusion_lib.schedule import NoiseSchedule, check_time

# Images, or rows of a table of distances, that are worked on at once.
_CHUNK = 500


@torch.no_grad()
def error_by_level(
    model,
    schedule: NoiseSchedule,
    dataset: Dataset,
    *,
    target: Target,
    levels: Iterable[int],
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Tensor]:
    """Mean squared errors per pixel at each noise level t in `levels`, on held-out images.

    model: `model(x_t, t)`, or `model(x_t, t, y)` if its `classes` is not None, in evaluation
    mode and, like the schedule, on the data's device. limit: score that many images, drawn
    by the seed; all without it. Every column sees the same noise, one draw for each image
    that serves all levels. Columns are float64, shape (L,), in units of images in [-1, 1]:

        t              the levels, int64
        noise          |ε − ε̂|², of the model
        noise_trivial  with ε̂ = x_t
        noise_floor    with ε̂ from the exact denoiser of the images scored
        data           |x₀ − x̂₀|², of the model
        data_clipped   with x̂₀ clipped to [-1, 1]
        data_trivial   with x̂₀ the mean of the images scored, the best constant
        data_floor     with x̂₀ from the exact denoiser of the images scored

    The floor: for an image drawn evenly from those scored, and fresh noise, the exact denoiser
    has the smallest expected error of all functions of x_t, or of x_t and y if the model takes
    labels (it then knows the images of that label alone). It knows the answers, so no model
    that learned from other images comes down to it where noise is low. The columns are
    averages over finitely many draws of noise, so they keep this order only up to chance.
    The floor costs the square of the number of images: seconds a level for 10,000 of MNIST.

    Raises ValueError for a level outside 1 … T, an unknown target or limit < 1.
    """
    levels = torch.as_tensor(list(levels), dtype=torch.int64)
    check_time(levels, schedule.T, first=1)
    device = dataset.images.device
    generator = torch.Generator().manual_seed(seed)
    images, labels = _some(dataset, limit, generator)
    x_all = to_float(images)
    noise_all = torch.randn(x_all.shape, generator=generator).to(device)
    mean = x_all.mean(0)
    # The images among which a denoiser has to choose: all, or those of one label.
    known = labels if takes_labels(model) else torch.zeros_like(labels)
    groups = [known == y for y in known.unique()]
    names = ("noise", "noise_trivial", "noise_floor")
    names += ("data", "data_clipped", "data_trivial", "data_floor")
    totals = {name: torch.zeros(len(levels), dtype=torch.float64) for name in names}
    for group in groups:
        exact = dataset_denoiser(schedule, x_all[group])
        parts = (part[group].split(_CHUNK) for part in (x_all, noise_all, labels))
        for x_0, noise, y in zip(*parts, strict=True):
            for i, level in enumerate(levels.tolist()):
                t = torch.full_like(y, level)
                x_t = schedule.add_noise(x_0, t, noise)
                x_0_hat, noise_hat = split(
                    _predict(model, x_t, t, y).float(), target, schedule, x_t, t
                )
                x_0_exact, noise_exact = split(exact(x_t, t), "data", schedule, x_t, t)
                for name, guess, truth in (
                    ("noise", noise_hat, noise),
                    ("noise_trivial", x_t, noise),
                    ("noise_floor", noise_exact, noise),
                    ("data", x_0_hat, x_0),
                    ("data_clipped", x_0_hat.clamp(-1, 1), x_0),
                    ("data_trivial", mean, x_0),
                    ("data_floor", x_0_exact, x_0),
                ):
                    totals[name][i] += _squared(guess - truth).sum()
    return {"t": levels} | {name: total / x_all.numel() for name, total in totals.items()}


@torch.no_grad()
def bits_per_dim(
    model,
    schedule: NoiseSchedule,
    dataset: Dataset,
    *,
    target: Target,
    seed: int = 0,
    draws: int = 8,
    limit: int | None = None,
    resamples: int = 200,
) -> dict[str, Any]:
    """Two upper bounds on −log₂ p(image) per pixel and channel, borders included.

    A pixel 0 … 255 is spread evenly over its bin, 1/127.5 wide in the units of x₀
    (dequantisation); by Jensen's inequality the density's −log₂ p(x₀), plus log₂ 127.5 for
    each dimension, bounds the bits of the pixels from above. −ln p(x₀) in turn is bounded by

        variational  L_0 + Σ_{t≥2} (SNR_{t-1} − SNR_t)/2 · |x₀ − x̂₀(x_t)|² + L_T
                     (Ho et al. 2020, eq. 5, with L_0 Gaussian of variance β_1)
        information  D/2 ln(2πe |x₀ − x̂₀(x_1)|²/D) + ½ ∫ |x₀ − x̂₀|² dSNR + L_T

    in expectation over noise. The second is the I-MMSE formula (Guo, Shamai & Verdú 2005;
    Kong et al. 2023),

        h = D/2 ln(2πe) − ½ ∫_0^∞ [D/(1+s) − E|x₀ − x̂₀|²] ds,

    by the trapezoid rule in ln SNR over the schedule's levels, closed at both ends by
    denoisers that are worse than the best one, so that it stays a bound. Below SNR_T that of
    N(0, I) data, x̂₀ = √ᾱ x_t, gives the same L_T as above. Beyond SNR_1 what is seen in addition
    to x_1 is combined linearly with x̂₀(x_1), at the weight that is best for its mean error over
    all images: the first term, a Gaussian decoder of the best variance (one number fitted to
    the images scored). The variational sum takes each slice of the integral at its noisier
    end. So the two differ by the steps' coarseness and by the decoder's variance; only
    the trapezoid's own error could bring `information` below −log₂ p.

    Both use the same evaluations of the model: t = 1 for every image, and `draws` further times
    each, with probability proportional to ᾱ_t Δln SNR_t, near to each level's share in the
    integral, stratified for each image and over all images. model, limit: as in
    `error_by_level`; a model of labels gives bounds on −log₂ p(image | label).

    Returns {"variational", "information"}, each with "value", "low", "high" (95 %, over images,
    which includes the noise of the draws), in bits per dimension; "parts", the same bits split
    into "decoder", "steps" (variational), "decoder_fitted", "integral" (information) and
    "prior" (both); and the counts "images" and "draws".
    Raises ValueError for an unknown target, draws < 1, limit < 1 or a schedule with T < 2.
    """
    if draws < 1 or schedule.T < 2:
        raise ValueError(f"draws must be >= 1 and T >= 2, got {draws} and {schedule.T}")
    generator = torch.Generator().manual_seed(seed)
    images, labels = _some(dataset, limit, generator)
    n, dims = len(images), images[0].numel()
    steps, integral = step_weights(schedule)
    # Each level's width in ln SNR times ᾱ, from t = 2 on.
    log_snr = schedule.log_snr.cpu().double()
    share = (integral / log_snr.exp() * log_snr.sigmoid())[2:]
    share = share / share.sum()
    # Times of one image fall into `draws` equal parts, those of one part over n equal strata.
    stratum = torch.stack([torch.randperm(n, generator=generator) for _ in range(draws)])
    jitter = torch.rand(draws, n, generator=generator, dtype=torch.float64)
    position = (torch.arange(draws)[:, None] + (stratum + jitter) / n) / draws
    drawn = torch.searchsorted(share.cumsum(0), position).clamp(max=len(share) - 1)
    times = torch.cat([torch.ones(1, n, dtype=torch.int64), drawn + 2])  # (1 + draws, n)

    errors, prior = torch.zeros(1 + draws, n, dtype=torch.float64), []
    for rows in torch.arange(n).split(_CHUNK):
        dequantise = torch.rand(images[rows].shape, generator=generator) - 0.5
        x_0 = to_float(images[rows]) + dequantise.to(images.device) / 127.5
        prior.append(prior_term(schedule, x_0).cpu().double())
        for k in range(1 + draws):
            t = times[k, rows].to(images.device)
            noise = torch.randn(x_0.shape, generator=generator).to(images.device)
            x_t = schedule.add_noise(x_0, t, noise)
            prediction = _predict(model, x_t, t, labels[rows]).float()
            x_0_hat, _ = split(prediction, target, schedule, x_t, t)
            errors[k, rows] = _squared(x_0_hat - x_0)
    each = errors[1:] / share[drawn]
    table = torch.stack(
        [
            errors[0],
            (steps[2:][drawn] * each).mean(0),
            (integral[2:][drawn] * each).mean(0) + integral[1] * errors[0],
            torch.cat(prior),
        ],
        dim=1,
    )  # (n, 4)
    beta_1 = schedule.beta[1].item()
    bounds = {
        name: _estimate(
            lambda rows, i=i: _to_bits(likelihood_bounds(*rows.mean(0), dims, beta_1)[i], dims),
            table,
            resamples=resamples,
            seed=seed,
        )
        for i, name in enumerate(("variational", "information"))
    }
    first, *rest = table.mean(0).tolist()
    decoders = likelihood_bounds(first, 0.0, 0.0, 0.0, dims, beta_1)
    parts = {
        "decoder": _to_bits(decoders[0], dims),
        "decoder_fitted": _to_bits(decoders[1], dims),
    }
    for name, nats in zip(("steps", "integral", "prior"), rest, strict=True):
        parts[name] = nats / (dims * math.log(2))
    return bounds | {"parts": parts, "images": n, "draws": draws}


def step_weights(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Weights of |x₀ − x̂₀(x_t)|² in the two bounds of `bits_per_dim`, float64, (T + 1,) each.

    The first has 0 at t < 2 and `objective.bound_weight` from there on; the second, 0 at
    t = 0, is the trapezoid rule for ½ ∫ … dSNR = ½ ∫ … SNR dln SNR from SNR_T to SNR_1.
    """
    steps = bound_weight(schedule).cpu().double()
    steps[:2] = 0
    log_snr = schedule.log_snr.cpu().double()
    half_gap = (log_snr[1:-1] - log_snr[2:]) / 2
    integral = torch.zeros_like(steps)
    integral[1:-1] += half_gap
    integral[2:] += half_gap
    integral[1:] *= log_snr[1:].exp() / 2
    return steps, integral


def likelihood_bounds(
    first: float, steps: float, integral: float, prior: float, dims: int, beta_1: float
) -> tuple[float, float]:
    """The two bounds of `bits_per_dim` on E[−ln p(x₀)], in nats, from their expectations.

    first: E|x₀ − x̂₀(x_1)|², summed over dimensions. steps, integral: the errors of all levels
    weighted by `step_weights`. prior: E[L_T]. dims: D. beta_1: the schedule's β_1.
    """
    first, steps, integral, prior = map(float, (first, steps, integral, prior))
    decoder = (dims * math.log(2 * math.pi * beta_1) + first / beta_1) / 2
    fitted = dims / 2 * math.log(2 * math.pi * math.e * first / dims) if first > 0 else -math.inf
    return decoder + steps + prior, fitted + integral + prior


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance (its square, as is usual) of Gaussians fitted to two sets of features.

        |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr (Σ_a^½ Σ_b Σ_a^½)^½

    (Dowson & Landau 1982; Heusel et al. 2017, eq. 6, with Inception's features). a: (N, F),
    b: (M, F), float; computed in float64. Its bias is upward and falls like 1/N + 1/M: compare
    only values with the same counts. Raises ValueError for N or M not above F, where a
    covariance would be singular, for shapes that disagree, and for NaN or infinity.
    """
    _check_features(a, b)
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(
            f"{a.shape[1]} features need more than {a.shape[1]} images for a covariance, "
            f"got {len(a)} and {len(b)}"
        )
    return _frechet(_moments(a), _moments(b))


def _frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Fréchet distance, squared, of two Gaussians, each a mean (F,) and a covariance (F, F)."""
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # The eigenvalues of a symmetric matrix; those of Σ_a Σ_b itself may come out complex.
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of generated features (Kynkäänniemi et al. 2019, eqs. 1 and 2).

    Precision is the share of the generated features that lie within the distance of some real
    one to its k-th nearest real neighbour; recall is the same with the roles exchanged.
    real: (N, F), generated: (M, F), float; both rise with N and M and depend on their
    ratio, so take N = M. Raises ValueError for shapes that disagree, NaN or infinity, or k
    outside 1 … min(N, M) − 1.
    """
    _check_features(real, generated)
    precision, recall = _covered(generated, real, k), _covered(real, generated, k)
    return precision.mean().item(), recall.mean().item()


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each image to its nearest training image, and which one it is.

    images: (N, …), training: (M, …), alike, each uint8 or float in [-1, 1]. Returns distances,
    float32 (N,), in units of [-1, 1], 0 for a copy, and int64 rows of `training`, (N,).
    Raises ValueError for shapes that disagree.
    """
    if images.shape[1:] != training.shape[1:] or len(training) == 0:
        raise ValueError(
            f"images and training must have shapes (N, …) and (M, …), M >= 1, "
            f"got {tuple(images.shape)} and {tuple(training.shape)}"
        )
    images, training = (
        (to_float(x) if x.dtype == torch.uint8 else x.float()).flatten(1)
        for x in (images, training)
    )
    length = training.square().sum(1)
    distances, rows = [], []
    for x in images.split(_CHUNK):
        # A product of matrices is quick, but rounding may exchange images nearly as near.
        near = (length - 2 * x @ training.T).topk(min(8, len(training)), largest=False).indices
        exact = torch.stack([(x - training[column]).norm(dim=1) for column in near.T], dim=1)
        best = exact.min(1)
        distances.append(best.values)
        rows.append(near.gather(1, best.indices[:, None])[:, 0])
    return torch.cat(distances), torch.cat(rows)


@torch.no_grad()
def sample_quality(
    samples: Tensor,
    train: Dataset,
    test: Dataset,
    classifier: Classifier,
    *,
    k: int = 3,
    seed: int = 0,
    resamples: int = 200,
) -> dict[str, Any]:
    """Samples against real images, in the features of our classifier.

    samples: (S, C, H, W), uint8, or float in [-1, 1] and then rounded to uint8 first, as the
    data are. n = min(S, number of held-out images) of each, drawn by the seed, are used:

        frechet    Fréchet distance in the features of our classifier (it is not an FID), of n
                   samples to all training images
        precision  of n samples, k nearest neighbours, against n training images
        recall     of the same
        nearest    median distance of n samples to their `nearest` training image

    each with "value", "low", "high" (95 %, of the chance in the n alone: the training images,
    and the neighbourhoods in which the n are looked for, are held fixed). "frechet_floor",
    "precision_floor", "recall_floor" and "nearest_floor" are the same with n held-out images
    in the place of the samples: what a perfect model would get. Learning the training images
    by heart gets more than that in the first three and is told by "copies": the share of the n
    samples that are nearer to a training image than all but 1 % of the held-out images are, so
    0.01 is chance. (A smooth image is near to many.) "classes" and "classes_held_out" count
    the labels that the classifier gives to those n. "samples" and "held_out" are n,
    "training" the number of training images. Minutes for MNIST on one CPU core.
    Raises ValueError as `frechet_distance`, so n must exceed the number of features.
    """
    if samples.ndim != 4 or samples.shape[1:] != train.shape:
        raise ValueError(
            f"samples must have shape (S, {', '.join(map(str, train.shape))}) like the data, "
            f"got {tuple(samples.shape)}"
        )
    if samples.dtype != torch.uint8:
        if not samples.isfinite().all():
            raise ValueError("samples must be finite, got NaN or infinity")
        samples = to_uint8(samples)
    generator = torch.Generator().manual_seed(seed)
    n = min(len(samples), len(test))
    training = features(classifier, train.images)
    some_training = training[torch.randperm(len(training), generator=generator)[:n]]
    moments = _moments(training)
    result = {"samples": n, "held_out": n, "training": len(training)}
    again = dict(resamples=resamples, seed=seed)
    distances = {}
    for images, suffix, counts in (
        (samples, "", "classes"),
        (test.images, "_floor", "classes_held_out"),
    ):
        rows = torch.randperm(len(images), generator=generator)[:n]
        found = features(classifier, images[rows.to(images.device)])
        value = frechet_distance(found, training)
        low, high = bootstrap(lambda x: _frechet(_moments(x), moments), found, **again)
        result["frechet" + suffix] = {"value": value, "low": low, "high": high}
        for name, points, reference in (
            ("precision", found, some_training),
            ("recall", some_training, found),
        ):
            covered = _covered(points, reference, k)
            result[name + suffix] = _estimate(torch.mean, covered, **again)
        distance, _ = nearest(images[rows.to(images.device)], train.images)
        distances[suffix] = distance.cpu().double()
        result["nearest" + suffix] = _estimate(torch.median, distances[suffix], **again)
        labels = classifier.head(found.to(classifier.head.weight)).argmax(1).cpu()
        result[counts] = labels.bincount(minlength=classifier.head.out_features).tolist()
    near = (distances[""] < distances["_floor"].quantile(0.01)).double()
    result["copies"] = _estimate(torch.mean, near, **again)
    return result


@torch.no_grad()
def features(classifier: Classifier, images: Tensor) -> Tensor:
    """The classifier's features of uint8 images (N, C, H, W): float64 (N, F), on the CPU."""
    device = classifier.head.weight.device
    parts = [classifier.features(to_float(part.to(device))) for part in images.split(_CHUNK)]
    return torch.cat(parts).cpu().double()


def bootstrap(
    statistic: Callable[..., float], *samples: Tensor, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of statistic(*samples): its value ± 1.96 × its bootstrap standard error.

    The standard error is the spread of the statistic over `resamples` draws with replacement
    from the rows of each sample (Efron 1979). Percentiles of these draws would be wrong for a
    Fréchet distance: drawing again adds to its upward bias, so that they may lie wholly
    above the value. The spread does not move with the bias, and for a mean both agree. For a
    Fréchet distance that is mostly bias, as of two samples of one law, the interval is up to
    about twice too wide. It tells the chance in the value, not the bias.
    samples: (N, …) each, N >= 2. Raises ValueError for fewer rows or resamples.
    """
    if not samples or min(len(sample) for sample in samples) < 2 or resamples < 2:
        raise ValueError("bootstrap needs samples of 2 rows or more, and 2 resamples or more")
    generator = torch.Generator().manual_seed(seed)
    value = float(statistic(*samples))
    again = torch.zeros(resamples, dtype=torch.float64)
    for i in range(resamples):
        rows = (torch.randint(len(s), (len(s),), generator=generator) for s in samples)
        again[i] = float(statistic(*(s[r] for s, r in zip(samples, rows, strict=True))))
    half = 1.96 * again.std().item()
    return value - half, value + half


def _estimate(statistic: Callable[..., float], *samples: Tensor, **how) -> dict[str, float]:
    low, high = bootstrap(statistic, *samples, **how)
    return {"value": float(statistic(*samples)), "low": low, "high": high}


def _some(dataset: Dataset, limit: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`limit` images drawn without replacement, or all, and their labels."""
    if limit is None:
        return dataset.images, dataset.labels
    if limit < 1:
        raise ValueError(f"limit must be positive or None, got {limit}")
    rows = torch.randperm(len(dataset), generator=generator)[:limit].to(dataset.images.device)
    return dataset.images[rows], dataset.labels[rows]


def _predict(model, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return model(x_t, t, y) if takes_labels(model) else model(x_t, t)


def _squared(difference: Tensor) -> Tensor:
    """|difference|² of each image: float64 (B,), on the CPU, since not every device has float64."""
    return difference.square().flatten(1).sum(1).cpu().double()


def _to_bits(nats: float, dims: int) -> float:
    """Nats of a density of x₀ to bits per dimension of its pixels, 127.5 of them per unit."""
    return nats / (dims * math.log(2)) + math.log2(127.5)


def _check_features(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            "features must have shapes (N, F) and (M, F), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity")


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F) of features (N, F), in float64."""
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    return mean, x.T @ x / (len(x) - 1)


def _covered(points: Tensor, reference: Tensor, k: int) -> Tensor:
    """1 for each point inside the k-th-neighbour ball of some reference, else 0: float64 (N,)."""
    if not 1 <= k < len(reference):
        raise ValueError(f"k must lie in 1 … {len(reference) - 1}, got {k}")
    points, reference = points.double(), reference.double()
    # The nearest of all is the reference itself, so its k-th neighbour is the (k + 1)-th.
    radius = torch.cat(
        [
            torch.cdist(part, reference).topk(k + 1, largest=False).values[:, -1]
            for part in reference.split(_CHUNK)
        ]
    )
    return torch.cat(
        [(torch.cdist(part, reference) <= radius).any(1).double() for part in points.split(_CHUNK)]
    )
