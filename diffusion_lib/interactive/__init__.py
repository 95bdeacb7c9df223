"""The sliders of the book: three views that answer with a kernel and without one.

`noise_laboratory` computes x_t in the page for any t; `panels` shows precomputed images over
an index; `curves` draws lines with a marker. Each returns an ipywidgets box of controls tied
by `jslink` to an anywidget, whose browser side is the .js file of the same name.
"""

from ._curves import curves
from ._laboratory import laboratory_noise, noise_laboratory
from ._panels import panels

__all__ = ["curves", "laboratory_noise", "noise_laboratory", "panels"]
