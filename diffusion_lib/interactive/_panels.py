"""Panels over an index: named rows of images, a frame of them for each place of the slider."""

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
    frame_controls,
    from_bytes,
    module,
    to_bytes,
)


class PanelsView(anywidget.AnyWidget):
    """Browser side: panels.js."""

    _esm = module("panels")
    _css = STYLE

    pixels = traitlets.Bytes().tag(sync=True)  # (names, F, N, C, H, W), uint8
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # F, N, C, H, W
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.List().tag(sync=True)  # F numbers or texts
    index_name = traitlets.Unicode().tag(sync=True)
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)  # N, or none
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)  # F, or none
    position = traitlets.Int().tag(sync=True)  # 0 … F − 1

    def summary(self) -> str:
        frames, samples, *shape = self.shape
        values = from_bytes(np.frombuffer(self.pixels, np.uint8)).reshape(len(self.names), -1)
        means = [f"{mean:.1f}".replace("-0.0", "0.0") for mean in values.mean(1)]
        rows = ", ".join(f"{n} (mean {mean})" for n, mean in zip(self.names, means, strict=True))
        return (
            f"panels: {frames} frames {self.index_name} = {self.index[0]} … {self.index[-1]}, "
            f"{samples} images {'×'.join(map(str, shape))}: {rows}"
        )


def panels(frames, *, index, index_name="t", captions=None, labels=None, initial=0):
    """Images over an index, with a slider and a play button.

    frames: dict of name → images, shape (F, N, C, H, W), alike for all names, C 1 or 3; floats
    of [-1, 1] (clipped beyond) or uint8. Each name is a row of N images. index: the F values
    that the slider runs over, in its order, integers or texts; index_name: what they are.
    captions: one text under each of the N images. labels: one remark for each of the F frames.
    initial: position of the first frame shown, 0 … F − 1.

    The page holds every frame: F·N·C·H·W bytes for each name. Raises TypeError or ValueError
    for arguments that disagree, empty frames, NaN.
    """
    if not isinstance(frames, dict) or not frames:
        raise TypeError(f"frames must be a dict of name → images, not empty, got {frames!r:.60}")
    arrays = {str(name): as_array(f"frames[{name!r}]", array) for name, array in frames.items()}
    shape = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.ndim != 5 or array.shape[2] not in (1, 3) or 0 in array.shape:
            raise ValueError(
                f"frames[{name!r}] must have shape (F, N, C, H, W) with C 1 or 3, none 0, "
                f"got {array.shape}"
            )
        if array.shape != shape:
            raise ValueError(
                f"frames[{name!r}] must have the first one's shape {shape}, got {array.shape}"
            )
        if array.dtype.kind != "f" and array.dtype != np.uint8:
            raise TypeError(f"frames[{name!r}] must be floats or uint8, got dtype {array.dtype}")
    index = check_index(index)
    if len(index) != shape[0]:
        raise ValueError(
            f"index must hold one value for each of the {shape[0]} frames, got {len(index)}"
        )
    view = PanelsView(
        pixels=b"".join(
            (a if a.dtype == np.uint8 else to_bytes(a)).tobytes() for a in arrays.values()
        ),
        shape=list(shape),
        names=list(arrays),
        index=index,
        index_name=index_name,
        captions=check_texts("captions", captions, shape[1], "images of a frame"),
        labels=check_texts("labels", labels, shape[0], "frames"),
        position=check_integer("initial", initial, 0, shape[0] - 1),
    )
    return Figure(view, frame_controls(view, shape[0], index_name))
