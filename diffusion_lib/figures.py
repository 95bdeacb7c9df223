"""Matplotlib figures in one style, readable in print, in grey and by the colour-blind."""

from __future__ import annotations

from contextlib import contextmanager

import matplotlib
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Colours told apart by most eyes (Okabe & Ito 2008), each with its own dash for those that
# cannot and for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#8A4A78", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "font.size": 10,
    "figure.dpi": 110,
}


@contextmanager
def _style():
    with plt.rc_context(STYLE):
        yield
        interactive = matplotlib.is_interactive()
    # In a notebook the first figure turns this on, to be shown; leaving the context undid it.
    matplotlib.interactive(interactive)


def axes(columns: int = 1, *, width: float = 7.0, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` plots side by side, in the style of the book, and its axes.

    width, height: of the whole figure, in inches.
    """
    with _style():
        figure, grid = plt.subplots(
            1, columns, figsize=(width, height), layout="constrained", squeeze=False
        )
    return figure, list(grid[0])


def image_grid(
    rows: dict[str, Tensor], *, titles: list[str] | None = None, width: float = 7.0
) -> Figure:
    """Images in named rows, such as {"x_t": …, "x̂₀": …}, on one grey scale from -1 to 1.

    rows: name to images (N, 1, H, W), the same N in each; values outside [-1, 1] are clipped.
    titles: N texts above the first row. width: inches.
    Raises ValueError if rows differ in length or an image is not grey.
    """
    counts = {name: len(images) for name, images in rows.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"rows must hold the same number of images, got {counts}")
    columns = next(iter(counts.values()))
    with _style():
        figure, grid = plt.subplots(
            len(rows),
            columns,
            figsize=(width, width / columns * len(rows) + (0.25 if titles else 0)),
            layout="constrained",
            squeeze=False,
        )
    for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
        if images.ndim != 4 or images.shape[1] != 1:
            raise ValueError(f"{name} must have shape (N, 1, H, W), got {tuple(images.shape)}")
        for ax, image in zip(axes_row, images.detach().cpu().numpy(), strict=True):
            ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, title in zip(grid[0], titles or [""] * columns, strict=True):
        ax.set_title(title, fontsize=9)
    return figure


def mosaic(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """One picture of N images in rows of `columns`, with `gap` grey pixels around each.

    images: (N, 1, H, W), N a multiple of columns.
    Returns (1, 1, rows·(H + gap) + gap, columns·(W + gap) + gap).
    """
    tiles = torch.nn.functional.pad(images, (gap, 0, gap, 0), value=-0.5)
    n, _, height, width = tiles.shape
    rows = tiles.view(n // columns, columns, height, width).transpose(1, 2)
    picture = rows.reshape(1, 1, n // columns * height, columns * width)
    return torch.nn.functional.pad(picture, (0, gap, 0, gap), value=-0.5)
