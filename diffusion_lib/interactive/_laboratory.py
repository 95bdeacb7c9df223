"""The noise laboratory: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε for any t, computed in the page."""

from __future__ import annotations

import math

import anywidget
import numpy as np
import traitlets
from ipywidgets import jslink

from ._common import (
    STYLE,
    Figure,
    as_array,
    check_integer,
    check_texts,
    dropdown,
    from_bytes,
    module,
    play,
    slider,
    to_bytes,
)

SCHEDULES = ("linear", "cosine")
T_CHOICES = (50, 200, 1000)
FRAMES = 240  # of Play, whatever T: a sweep lasts 240 · 40 ms
MAX_IMAGES = 8


class LaboratoryView(anywidget.AnyWidget):
    """Browser side: laboratory.js. The choices are held as indices, as Dropdown syncs them."""

    _esm = module("laboratory")
    _css = STYLE

    images = traitlets.Bytes().tag(sync=True)  # (N, C, H, W), uint8: x₀ = u / 127.5 − 1
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # C, H, W
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    T_choices = traitlets.List(traitlets.Int()).tag(sync=True)
    image = traitlets.Int().tag(sync=True)
    schedule_index = traitlets.Int().tag(sync=True)
    T_index = traitlets.Int().tag(sync=True)
    T = traitlets.Int().tag(sync=True)
    t = traitlets.Int().tag(sync=True)
    frame = traitlets.Int().tag(sync=True)  # of Play: t = round(frame · T / FRAMES)
    seed = traitlets.Int().tag(sync=True)

    def summary(self) -> str:
        shape = "×".join(map(str, self.shape))
        mean = from_bytes(np.frombuffer(self.images, np.uint8)).mean()
        return (
            f"noise_laboratory: {len(self.captions)} images {shape}, T={self.T}, "
            f"{SCHEDULES[self.schedule_index]}, mean x₀ {mean:.2f}"
        )


def noise_laboratory(images, *, captions=None, T=1000, schedule="linear", t=None, seed=0):
    """Sliders over x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4), every t from 0 to T.

    images: float, shape (N, C, H, W), 1 to 8 images of 1 or 3 channels, in [-1, 1]; held as
    bytes, so to 1/255. captions: one text for each image. T: 21 … 10000, offered beside 50,
    200 and 1000. schedule: "linear" or "cosine". t: where the slider starts, T // 4 if None.
    seed: of the noise, which is `laboratory_noise(seed, (C, H, W))`; each fresh draw adds 1.

    The page computes in float64. Raises TypeError or ValueError for anything else.
    """
    images = as_array("images", images)
    shape = images.shape
    if len(shape) != 4 or shape[0] > MAX_IMAGES or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"images must have shape (N, C, H, W) with N of 1 … {MAX_IMAGES}, C 1 or 3, none 0, "
            f"got {shape}"
        )
    if images.dtype.kind != "f":
        raise TypeError(f"images must be floats in [-1, 1], got dtype {images.dtype}")
    if abs(images).max() > 1:
        raise ValueError(f"images must lie in [-1, 1], got {images.min():.4g} … {images.max():.4g}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    T = check_integer("T", T, 21, 10_000)
    t = T // 4 if t is None else check_integer("t", t, 0, T)
    names = check_texts("captions", captions, len(images), "images")
    names = names or [f"image {k + 1}" for k in range(len(images))]
    choices = sorted({T, *T_CHOICES})
    view = LaboratoryView(
        images=to_bytes(images).tobytes(),
        shape=list(shape[1:]),
        captions=names,
        T_choices=choices,
        T_index=choices.index(T),
        T=T,
        t=t,
        frame=math.floor(t * FRAMES / T + 0.5),
        schedule_index=SCHEDULES.index(schedule),
        seed=check_integer("seed", seed, 0, 2**32 - 1),
    )
    time = slider(view, "t", maximum=T, name="t", readout=True)
    jslink((view, "T"), (time, "max"))
    controls = [
        play(view, "frame", maximum=FRAMES, interval=40),
        time,
        dropdown(view, "image", names, "image"),
        dropdown(view, "schedule_index", SCHEDULES, "schedule"),
        dropdown(view, "T_index", [str(choice) for choice in choices], "T"),
    ]
    return Figure(view, controls)


def laboratory_noise(seed: int, shape) -> np.ndarray:
    """The laboratory's ε for a seed: standard normal, float64, of the given shape.

    Word k = 1, 2, … of the stream is h(h(seed) + k · 0x9E3779B9) mod 2³² with h the hash
    lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018); each pair of words makes two
    normals (Box & Muller 1958). laboratory.js holds its twin, equal to rounding of the last
    digits. seed: 0 … 2³² − 1. Raises TypeError or ValueError for another.
    """
    start = _scramble(np.array([check_integer("seed", seed, 0, 2**32 - 1)], np.uint32))
    count = math.prod(shape)
    k = np.arange(1, count + count % 2 + 1, dtype=np.uint32)
    uniform = (_scramble(start + k * np.uint32(0x9E3779B9)) + 0.5) / 2**32
    radius = np.sqrt(-2 * np.log(uniform[0::2]))
    angle = 2 * np.pi * uniform[1::2]
    noise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return noise.ravel()[:count].reshape(shape)


def _scramble(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
