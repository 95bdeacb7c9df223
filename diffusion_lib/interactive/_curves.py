"""Curves: named lines over x, with an optional marker; they can grow while a cell runs."""

from __future__ import annotations

import anywidget
import numpy as np
import traitlets

from ._common import STYLE, Figure, as_array, check_integer, module, rounded, slider


class CurvesView(anywidget.AnyWidget):
    """Browser side: curves.js."""

    _esm = module("curves")
    _css = STYLE

    data = traitlets.Dict().tag(sync=True)  # x, names, values: one trait, so one message
    x_name = traitlets.Unicode().tag(sync=True)
    y_name = traitlets.Unicode().tag(sync=True)
    log_y = traitlets.Bool().tag(sync=True)
    has_marker = traitlets.Bool().tag(sync=True)
    position = traitlets.Int().tag(sync=True)  # of the marker, in x

    def summary(self) -> str:
        x, names, values = (self.data[key] for key in ("x", "names", "values"))
        span = f"{self.x_name} = {x[0]:g} … {x[-1]:g}, " if x else ""
        means = [f" (mean {np.mean(v):.1g})" if v else "" for v in values]
        lines = ", ".join(name + mean for name, mean in zip(names, means, strict=True))
        return f"curves: {len(x)} points, {span}{self.y_name}: {lines}"


class Curves(Figure):
    """What `curves` returns: the view, and `update` to change what it shows."""

    def __init__(self, view, control):
        self.slider = control
        super().__init__(view, [control] if control else [])

    def update(self, x, series) -> None:
        """Show these points from now on; the names may change too. Arguments as in `curves`."""
        data = _check(x, series, self.view.log_y)
        if self.slider:
            self.slider.max = _last(data)
        self.view.data = data


def curves(x, series, *, x_name, y_name, marker=None, log_y=False):
    """Lines over x, each labelled, and the value of each at the marker, or else at the end.

    x: n numbers, ascending. series: dict of name → n numbers; n may be 0, to be filled by
    `update`. marker: position in x, 0 … n − 1, where a slider puts a marker; None for none.
    log_y: a logarithmic y axis, for values above 0. Values are held to 4 significant digits.

    Raises TypeError or ValueError for lengths that disagree, x that descends, NaN, infinity, or
    values that a logarithmic axis cannot show.
    """
    data = _check(x, series, log_y)
    if marker is not None:
        marker = check_integer("marker", marker, 0, max(len(data["x"]) - 1, 0))
    view = CurvesView(
        data=data,
        x_name=x_name,
        y_name=y_name,
        log_y=log_y,
        has_marker=marker is not None,
        position=marker or 0,
    )
    if marker is None:
        return Curves(view, None)
    return Curves(view, slider(view, "position", maximum=_last(data), name=x_name, readout=False))


def _last(data: dict) -> int:
    # A slider of one place alone is an error in the page; the view clips what is beyond the end.
    return max(len(data["x"]) - 1, 1)


def _check(x, series, log_y: bool) -> dict:
    x = as_array("x", x)
    if x.ndim != 1 or (np.diff(x) < 0).any():
        raise ValueError(f"x must be one ascending row of numbers, got shape {x.shape}")
    if not isinstance(series, dict) or not series:
        raise TypeError(f"series must be a dict of name → numbers, got {series!r:.60}")
    values = []
    for name, row in series.items():
        row = as_array(f"series[{name!r}]", row)
        if row.shape != x.shape:
            raise ValueError(
                f"series[{name!r}] must have {len(x)} numbers like x, got shape {row.shape}"
            )
        if log_y and (row <= 0).any():
            raise ValueError(f"series[{name!r}] must be above 0 for log_y, got {row.min():g}")
        values.append([rounded(value) for value in row.tolist()])
    return {
        "x": [rounded(v, 9) for v in x.tolist()],
        "names": [str(n) for n in series],
        "values": values,
    }
