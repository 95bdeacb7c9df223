"""What the three views share: their browser side, their controls, their checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ipywidgets import Box, IntSlider, Layout, Play, VBox, jslink

HERE = Path(__file__).parent
STYLE = (HERE / "style.css").read_text(encoding="utf-8")


def module(name: str) -> str:
    """Source of the ES module of a view: common.js, then the view's own file."""
    files = [HERE / "common.js", HERE / f"{name}.js"]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class Figure(VBox):
    """Controls above a view; its text form says what is shown, without address or id."""

    def __init__(self, view, controls):
        self.view = view
        row = Box(controls, layout=Layout(width="100%"))
        row.add_class("diffusion-controls")
        super().__init__([row, view] if controls else [view], layout=Layout(width="100%"))
        self.add_class("diffusion-box")

    def __repr__(self) -> str:
        return self.view.summary()


def slider(view, trait: str, *, maximum: int, name: str, readout: bool) -> IntSlider:
    """A slider 0 … maximum tied to a trait of the view; it shrinks on a narrow screen."""
    control = IntSlider(
        getattr(view, trait),
        0,
        maximum,
        description=name,
        readout=readout,
        layout=Layout(width="auto", min_width="0", flex="1 1 36rem"),
        style={"description_width": "initial"},
    )
    jslink((control, "value"), (view, trait))
    return control


def play(view, trait: str, *, maximum: int, interval: int) -> Play:
    """A play button over 0 … maximum tied to a trait of the view; interval in milliseconds."""
    control = Play(
        value=getattr(view, trait),
        min=0,
        max=maximum,
        interval=interval,
        show_repeat=False,
        layout=Layout(width="5rem", flex="0 0 auto"),
    )
    jslink((control, "value"), (view, trait))
    return control


def as_array(name: str, value) -> np.ndarray:
    """`value` as a numpy array of numbers; a torch tensor on any device will do."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity; its values must be finite")
    return array


def to_bytes(values: np.ndarray) -> np.ndarray:
    """[-1, 1] → 0 … 255, clipped and rounded half up, as the page rounds."""
    return np.floor((np.clip(values.astype(np.float64), -1, 1) + 1) / 2 * 255 + 0.5).astype(
        np.uint8
    )


def from_bytes(values: np.ndarray) -> np.ndarray:
    """0 … 255 → [-1, 1], in float64, as the page reads its images."""
    return values / 127.5 - 1


def check_integer(name: str, value, low: int, high: int) -> int:
    """`value` as an int; raise unless it is an integer of low … high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer of {low} … {high}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be an integer of {low} … {high}, got {value}")
    return int(value)


def check_texts(name: str, texts, count: int, each: str) -> list[str]:
    """`texts` as strings, one for each of `count`; none at all if it is None."""
    if texts is None:
        return []
    texts = [str(text) for text in texts]
    if len(texts) != count:
        raise ValueError(
            f"{name} must hold one text for each of the {count} {each}, got {len(texts)}"
        )
    return texts
