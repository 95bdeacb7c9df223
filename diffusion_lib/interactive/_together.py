"""Together: several views in one figure, all at the place of one slider."""

from __future__ import annotations

from ipywidgets import Dropdown, IntSlider, jslink

from ._common import Figure


def together(figure, *others):
    """One figure with the controls of the first; the others follow its slider.

    figure, others: what `panels`, `charts`, or `curves` with a marker returned, all with as many
    places. Dropdowns of the others come after the controls of the first. Raises TypeError or
    ValueError for figures without such a slider, or with another number of places.
    """
    count = _places("figure", figure)
    controls, followers = list(figure.controls), figure.views[1:]
    for k, other in enumerate(others):
        if (places := _places(f"others[{k}]", other)) != count:
            raise ValueError(
                f"others[{k}] must have as many places as the first figure, {count}, got {places}"
            )
        # Its own controls are still tied to it: all must start at the same place.
        for tied in [*other.views, *other.controls]:
            if hasattr(tied, "position"):
                tied.position = figure.view.position
            elif not isinstance(tied, Dropdown):
                tied.value = figure.view.position
        jslink((figure.view, "position"), (other.view, "position"))
        controls += [control for control in other.controls if isinstance(control, Dropdown)]
        followers += other.views
    return Figure(figure.view, controls, *followers)


def _places(name: str, figure) -> int:
    """Places of the slider over positions in `figure`."""
    if not isinstance(figure, Figure):
        raise TypeError(
            f"{name} must be what panels, charts or curves returned, got {type(figure).__name__}"
        )
    sliders = [control for control in figure.controls if isinstance(control, IntSlider)]
    if not sliders or not hasattr(figure.view, "position"):
        raise ValueError(f"{name} has no slider to follow or to be followed: {figure}")
    return sliders[0].max + 1
