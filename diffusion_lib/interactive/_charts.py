"""Charts: bars and lines over x, a frame of them for each place of the slider."""

from __future__ import annotations

import anywidget
import numpy as np
import traitlets

from ._common import (
    STYLE,
    Figure,
    as_array,
    check_index,
    check_integer,
    check_texts,
    dropdown,
    frame_controls,
    module,
    rounded,
)

MAX_NAMES = 4  # as many as there are colours


class ChartsView(anywidget.AnyWidget):
    """Browser side: charts.js."""

    _esm = module("charts")
    _css = STYLE

    # Series after series, each (K or 1, F or 1, n), as `to_triples` writes them.
    values = traitlets.Bytes().tag(sync=True)
    series = traitlets.List().tag(sync=True)  # a dict each: kind, name, choices, frames
    x = traitlets.List().tag(sync=True)  # n numbers, or n texts
    index = traitlets.List().tag(sync=True)  # F numbers or texts
    index_name = traitlets.Unicode().tag(sync=True)
    x_name = traitlets.Unicode().tag(sync=True)
    y_name = traitlets.Unicode().tag(sync=True)
    choices = traitlets.List(traitlets.Unicode()).tag(sync=True)  # K, or none
    labels = traitlets.List().tag(sync=True)  # K or 1 rows of F texts, or none
    choice = traitlets.Int().tag(sync=True)  # 0 … K − 1
    position = traitlets.Int().tag(sync=True)  # 0 … F − 1

    def summary(self) -> str:
        texts, start, values = [], 0, from_triples(self.values)
        for one in self.series:
            size = one["choices"] * one["frames"] * len(self.x)
            # Halves go up on every machine: the mean of 4 probabilities, 0.25, says 0.3.
            mean = values[start : start + size].mean() * 1.0001
            texts.append(f"{one['name']} (mean {mean:.1g})")
            start += size
        choices = f"{len(self.choices)} × " if self.choices else ""
        return (
            f"charts: {choices}{len(self.index)} frames {self.index_name} = {self.index[0]} … "
            f"{self.index[-1]}, {len(self.x)} {self.x_name}: {', '.join(texts)}"
        )


def charts(
    index,
    x,
    *,
    bars=None,
    lines=None,
    index_name="t",
    x_name,
    y_name,
    choices=None,
    choice_name=None,
    labels=None,
    initial=0,
):
    """Bars and lines over x, a frame for each place of a slider, with a play button.

    index: the F values that the slider runs over, in its order, integers or texts; index_name:
    what they are. x: n numbers, ascending, or n texts, which are categories. bars, lines: dict
    of name → values of shape (F, n), or (K, F, n) with K `choices`, or what broadcasts to it; 1
    to 4 names in all. With numbers x, bars are a histogram, each centred on its x, and one name
    may have them; over categories they stand side by side, and a line is a level across its
    category. The y axis is the same for all frames and choices, and starts at 0 if there are bars.
    choices: K texts, at least two, offered in a dropdown; choice_name: what they are. labels: one
    remark for each frame, F texts, or K rows of them. initial: position of the first frame shown.

    Values are held to 4 significant digits, in 3 bytes each; those that do not change from frame
    to frame are best given once, as (n,) or (K, 1, n). Raises TypeError or ValueError for
    arguments that disagree, NaN and infinity.
    """
    index = check_index(index)
    if not index:
        raise ValueError("index must hold at least one value")
    x, categories = _check_x(x)
    if (choices is None) != (choice_name is None):
        raise TypeError("choices and choice_name go together: give both or neither")
    if choices is not None and len(choices) < 2:
        raise ValueError("choices must hold at least two texts, or be left out")
    choices = [] if choices is None else [str(choice) for choice in choices]
    bars, lines = (_check_dict(*pair) for pair in [("bars", bars), ("lines", lines)])
    names = [*map(str, bars), *map(str, lines)]
    if not 1 <= len(names) <= MAX_NAMES or len(set(names)) < len(names):
        raise ValueError(
            f"bars and lines must have 1 … {MAX_NAMES} names in all, no two alike, got {names}"
        )
    if len(bars) > 1 and not categories:
        raise ValueError(f"bars over numbers x must have one name, got {list(bars)}")
    shape = (len(choices) or 1, len(index), len(x))
    series, values = [], []
    for argument, kind, rows in [("bars", "bars", bars), ("lines", "line", lines)]:
        for name, row in rows.items():
            row = _check_row(f"{argument}[{name!r}]", row, shape, bool(choices))
            one = {"kind": kind, "name": str(name), "choices": len(row), "frames": len(row[0])}
            series.append(one)
            values.append(to_triples(row))
    view = ChartsView(
        values=b"".join(values),
        series=series,
        x=x,
        index=index,
        index_name=index_name,
        x_name=x_name,
        y_name=y_name,
        choices=choices,
        labels=_check_labels(labels, len(choices), len(index)),
        position=check_integer("initial", initial, 0, len(index) - 1),
    )
    controls = frame_controls(view, len(index), index_name)
    if choices:
        controls.append(dropdown(view, "choice", choices, choice_name))
    return Figure(view, controls)


def to_triples(values: np.ndarray) -> bytes:
    """Values rounded to 4 significant digits: float32, little-endian, without the lowest byte.

    What is cut off is less than half of the fourth digit, so that rounding what is left to
    4 digits gives it back. Below 1e-37, where float32 loses digits, it is 0.
    """
    held = [rounded(v) if abs(v) >= 1e-37 else 0 for v in values.ravel().tolist()]
    return np.array(held, "<f4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def from_triples(data: bytes) -> np.ndarray:
    """The values that `to_triples` wrote, in float64, as the page reads them."""
    triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
    cut = np.pad(triples, ((0, 0), (1, 0))).view("<f4").ravel()
    return np.array([rounded(value) for value in cut.tolist()])


def _check_x(x) -> tuple[list, bool]:
    if len(x) and all(isinstance(value, str) for value in x):
        return [str(value) for value in x], True
    x = as_array("x", x)
    if x.ndim != 1 or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(
            f"x must be a row of ascending numbers, at least two and no two alike, or of texts, "
            f"got shape {x.shape}"
        )
    return [rounded(value, 9) for value in x.tolist()], False


def _check_dict(name: str, rows) -> dict:
    if not isinstance(rows, dict | None):
        raise TypeError(f"{name} must be a dict of name → numbers, got {rows!r:.60}")
    return rows or {}


def _check_row(name: str, row, shape: tuple, has_choices: bool) -> np.ndarray:
    """`row` as (K or 1, F or 1, n) for `shape` (K, F, n)."""
    row = as_array(name, row)
    full = shape if has_choices else shape[1:]
    try:
        fits = np.broadcast_shapes(row.shape, full) == full
    except ValueError:
        fits = False
    if not fits:
        letters = "(K, F, n)" if has_choices else "(F, n)"
        raise ValueError(f"{name} must broadcast to {letters} = {full}, got shape {row.shape}")
    if abs(row).max() > 3e38:
        raise ValueError(f"{name} must hold numbers of at most 3e38, got {abs(row).max():.1g}")
    row = row.reshape((1,) * (3 - row.ndim) + row.shape)
    return np.broadcast_to(row, (*row.shape[:2], shape[2]))


def _check_labels(labels, choices: int, frames: int) -> list[list[str]]:
    if labels is None:
        return []
    labels = list(labels)
    if not choices or not labels or isinstance(labels[0], str):
        return [check_texts("labels", labels, frames, "frames")]
    if len(labels) != choices:
        raise ValueError(
            f"labels must hold one row for each of the {choices} choices, got {len(labels)}"
        )
    return [check_texts(f"labels[{k}]", row, frames, "frames") for k, row in enumerate(labels)]
