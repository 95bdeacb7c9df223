"""The sliders of the book: views that answer with a kernel and without one.

`noise_laboratory` computes x_t in the page for any t; `gaussian_laboratory` and
`divergence_laboratory` compute Gaussians there; `panels` shows precomputed images over an index,
`charts` bars and lines; `curves` draws lines with a marker; `together` puts several over one
slider. Each returns an ipywidgets box of controls tied by `jslink` to an anywidget, whose
browser side is the .js file of its name.
"""

from ._charts import charts
from ._curves import curves
from ._gaussians import divergence_laboratory, gaussian_laboratory
from ._laboratory import laboratory_noise, noise_laboratory
from ._panels import panels
from ._together import together

__all__ = [
    "charts",
    "curves",
    "divergence_laboratory",
    "gaussian_laboratory",
    "laboratory_noise",
    "noise_laboratory",
    "panels",
    "together",
]
