"""What the views share: their browser side, their controls, their checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ipywidgets import Box, Dropdown, FloatSlider, IntSlider, Layout, Play, VBox, jslink

HERE = Path(__file__).parent
STYLE = (HERE / "style.css").read_text(encoding="utf-8")


def module(name: str) -> str:
    """Source of the ES module of a view: common.js, then the view's own file."""
    files = [HERE / "common.js", HERE / f"{name}.js"]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class Figure(VBox):
    """Controls above their views; its text form says what is shown, without address or id."""

    def __init__(self, view, controls, *followers):
        self.view = view
        self.views = [view, *followers]
        self.controls = list(controls)
        row = Box(self.controls, layout=Layout(width="100%"))
        row.add_class("diffusion-controls")
        rows = [row] if self.controls else []
        super().__init__([*rows, *self.views], layout=Layout(width="100%"))
        self.add_class("diffusion-box")

    def __repr__(self) -> str:
        return " + ".join(view.summary() for view in self.views)

    def _repr_mimebundle_(self, **kwargs):
        # ipywidgets 8 cuts a text after 110 characters, and so the second of two views.
        return {**super()._repr_mimebundle_(**kwargs), "text/plain": repr(self)}


def slider(view, trait: str, *, maximum: int, name: str, readout: bool) -> IntSlider:
    """A slider 0 … maximum tied to a trait of the view; it shrinks on a narrow screen."""
    control = IntSlider(
        getattr(view, trait), 0, maximum, readout=readout, **_flexible(name, "36rem")
    )
    jslink((control, "value"), (view, trait))
    return control


def real_slider(view, trait: str, *, low: float, high: float, name: str) -> FloatSlider:
    """A slider low … high in steps of 0.05 tied to a trait of the view; two fit in a row."""
    control = FloatSlider(
        value=getattr(view, trait), min=low, max=high, step=0.05, **_flexible(name, "18rem")
    )
    jslink((control, "value"), (view, trait))
    return control


def _flexible(name: str, width: str) -> dict:
    return {
        "description": name,
        "layout": Layout(width="auto", min_width="0", flex=f"1 1 {width}"),
        "style": {"description_width": "initial"},
    }


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


def frame_controls(view, count: int, name: str) -> list:
    """Play button and slider over the `count` places of a view; none for a single place."""
    if count == 1:
        return []
    interval = min(max(8000 // count, 33), 400)
    return [
        play(view, "position", maximum=count - 1, interval=interval),
        slider(view, "position", maximum=count - 1, name=name, readout=False),
    ]


def dropdown(view, trait: str, options, name: str) -> Dropdown:
    """A dropdown whose index is tied to a trait of the view."""
    # Pairs, since two options may bear the same text.
    pairs = [(option, k) for k, option in enumerate(options)]
    control = Dropdown(
        options=pairs,
        index=getattr(view, trait),
        description=name,
        layout=Layout(width="auto", max_width="100%"),
        style={"description_width": "initial"},
    )
    jslink((control, "index"), (view, trait))
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


def rounded(value: float, digits: int = 4) -> float:
    """`value` to so many significant digits."""
    return float(f"{value:.{digits}g}")


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


def check_real(name: str, value, low: float, high: float) -> float:
    """`value` as a float; raise unless it is a number of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number of {low:g} … {high:g}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be a number of {low:g} … {high:g}, got {value:g}")
    return float(value)


def check_index(index) -> list:
    """`index` as a list of integers or texts, one for each frame."""
    index = np.asarray(index)
    if index.ndim != 1 or index.dtype.kind not in "iuU":
        raise TypeError(f"index must be a row of integers or texts, got dtype {index.dtype}")
    return index.tolist()
