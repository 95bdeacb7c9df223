"""The Python side of the sliders. Runs under ipywidgets 7 and 8, without torch."""

import json
import re
from statistics import NormalDist

import ipywidgets
import numpy as np
import pytest
from ipywidgets.embed import dependency_state

from diffusion_lib.interactive import (
    charts,
    curves,
    divergence_laboratory,
    gaussian_laboratory,
    laboratory_noise,
    noise_laboratory,
    panels,
    together,
)
from diffusion_lib.interactive._charts import from_triples, to_triples
from diffusion_lib.interactive._common import HERE, from_bytes, to_bytes
from diffusion_lib.interactive._gaussians import gaussian_kl

IMAGES = np.linspace(-1, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


def frames(count=4, samples=2, channels=1):
    shape = (count, samples, channels, 3, 2)
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def links(figure):
    """The pairs that the saved state ties together, as {(kind, trait), (kind, trait)}."""
    state = dependency_state([figure])
    json.dumps(state)

    def end(reference, trait):
        return state[reference.removeprefix("IPY_MODEL_")]["model_name"], trait

    tied = [m["state"] for m in state.values() if m["model_name"] == "LinkModel"]
    return {frozenset([end(*link["source"]), end(*link["target"])]) for link in tied}


# The laboratory


def test_laboratory_state():
    lab = noise_laboratory(IMAGES, captions=["a", "b"], T=400, schedule="cosine", t=100, seed=7)
    view = lab.view
    assert view.shape == [3, 4, 5]
    assert view.captions == ["a", "b"]
    assert view.T_choices == [50, 200, 400, 1000]
    assert view.T_choices[view.T_index] == view.T == 400
    assert (view.t, view.frame, view.seed, view.image, view.schedule_index) == (100, 60, 7, 0, 1)
    shown = from_bytes(np.frombuffer(view.images, np.uint8)).reshape(IMAGES.shape)
    assert abs(shown - IMAGES).max() <= 1 / 255


def test_laboratory_defaults():
    view = noise_laboratory(IMAGES).view
    assert (view.T, view.t, view.seed) == (1000, 250, 0)
    assert view.captions == ["image 1", "image 2"]


def test_laboratory_controls_are_tied_in_the_saved_state():
    assert links(noise_laboratory(IMAGES)) == {
        frozenset(pair)
        for pair in [
            [("IntSliderModel", "value"), ("AnyModel", "t")],
            [("IntSliderModel", "max"), ("AnyModel", "T")],
            [("PlayModel", "value"), ("AnyModel", "frame")],
            [("DropdownModel", "index"), ("AnyModel", "image")],
            [("DropdownModel", "index"), ("AnyModel", "schedule_index")],
            [("DropdownModel", "index"), ("AnyModel", "T_index")],
        ]
    }


def test_laboratory_controls_start_where_the_view_does():
    lab = noise_laboratory(IMAGES, T=50, schedule="cosine", t=20)
    play, time, image, schedule, T = lab.children[0].children
    assert (play.value, play.max) == (96, 240)
    assert (time.value, time.min, time.max) == (20, 0, 50)
    assert (image.index, schedule.label, T.label) == (0, "cosine", "50")


def test_laboratory_repr():
    lab = noise_laboratory(IMAGES - 0.1 * (IMAGES > 0), schedule="cosine")
    expected = "noise_laboratory: 2 images 3×4×5, T=1000, cosine, mean x₀ -0.05"
    assert repr(lab) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": IMAGES[0]}, ValueError, r"images must have shape .* got \(3, 4, 5\)"),
        ({"images": np.zeros((9, 1, 2, 2))}, ValueError, r"images .* 1 … 8.* got \(9, 1, 2, 2\)"),
        (
            {"images": np.zeros((1, 2, 2, 2))},
            ValueError,
            r"images .* C 1 or 3.* got \(1, 2, 2, 2\)",
        ),
        ({"images": np.zeros((0, 1, 2, 2))}, ValueError, r"images .* got \(0, 1, 2, 2\)"),
        ({"images": np.full((1, 1, 2, 2), np.nan)}, ValueError, "images contains NaN"),
        ({"images": np.full((1, 1, 2, 2), 1.5)}, ValueError, r"images must lie in \[-1, 1\].* 1.5"),
        ({"images": np.zeros((1, 1, 2, 2), int)}, TypeError, "images must be floats .* int64"),
        ({"images": [["x"]]}, TypeError, "images must hold real numbers"),
        ({"captions": ["a"]}, ValueError, "captions .* each of the 2 images, got 1"),
        (
            {"schedule": "square"},
            ValueError,
            "schedule must be one of linear, cosine, got 'square'",
        ),
        ({"T": 20}, ValueError, "T must be an integer of 21 … 10000, got 20"),
        ({"T": 50.0}, TypeError, "T must be an integer of 21 … 10000, got 50.0"),
        ({"T": True}, TypeError, "T must be an integer"),
        ({"t": 1001}, ValueError, "t must be an integer of 0 … 1000, got 1001"),
        ({"t": -1}, ValueError, "t must be an integer of 0 … 1000, got -1"),
        ({"seed": 2**32}, ValueError, "seed must be an integer of 0 … 4294967295, got 4294967296"),
    ],
)
def test_laboratory_refuses(change, error, message):
    with pytest.raises(error, match=message):
        noise_laboratory(**{"images": IMAGES, **change})


# Its noise


def test_noise_is_what_it_was():
    # Stored pages and texts show these draws.
    expected = [3.0939055907397353, 0.3794357013822058, -2.077741313314149, 1.1338290165956113]
    np.testing.assert_allclose(laboratory_noise(0, (4,)), expected, rtol=1e-12)
    expected = [0.7317935126420193, 0.6551267272461749, 1.3718003428427012, 1.191863969246304]
    np.testing.assert_allclose(laboratory_noise(2**32 - 1, (4,)), expected, rtol=1e-12)


def test_noise_fills_any_shape_from_one_stream():
    assert laboratory_noise(3, (3, 5, 5)).shape == (3, 5, 5)
    np.testing.assert_array_equal(
        laboratory_noise(3, (3, 5, 5)).ravel(), laboratory_noise(3, (76,))[:75]
    )


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_noise_is_standard_normal(seed):
    count = 100_000
    noise = laboratory_noise(seed, (count,))
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    # Kolmogorov–Smirnov: the largest gap between the two distribution functions.
    ranks = np.arange(1, count + 1) / count
    gap = abs(ranks - [NormalDist().cdf(value) for value in np.sort(noise)]).max()
    assert gap < 1.95 / count**0.5  # 0.1 % point


def test_noise_of_neighbouring_seeds_and_pixels_is_uncorrelated():
    draws = np.stack([laboratory_noise(seed, (10_000,)) for seed in range(20)])
    correlation = np.corrcoef(draws) - np.eye(20)
    assert abs(correlation).max() < 4.5 / 10_000**0.5
    neighbours = (draws[:, 1:] * draws[:, :-1]).mean(1)
    assert abs(neighbours).max() < 4.5 / 10_000**0.5


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_noise_refuses_a_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=f"seed must be .* got {seed}"):
        laboratory_noise(seed, (2,))


# Bytes


def test_bytes_round_trip():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_bytes(from_bytes(every)), every)


def test_bytes_are_clipped_and_rounded_half_up():
    values = np.array([-7, -1, -127 / 255, 0, 1, 7])
    assert to_bytes(values).tolist() == [0, 0, 64, 128, 255, 255]


# Panels


def test_panels_state():
    floats = from_bytes(frames())[::-1]
    view = panels(
        {"x_t": frames(), "x̂₀": floats}, index=[3, 2, 1, 0], captions="ab", initial=1
    ).view
    assert view.shape == [4, 2, 1, 3, 2]
    assert view.names == ["x_t", "x̂₀"]
    assert view.index == [3, 2, 1, 0]
    assert (view.index_name, view.captions, view.labels, view.position) == ("t", ["a", "b"], [], 1)
    held = np.frombuffer(view.pixels, np.uint8).reshape(2, 4, 2, 1, 3, 2)
    np.testing.assert_array_equal(held, np.stack([frames(), frames()[::-1]]))


def test_panels_controls():
    figure = panels({"x": frames()}, index=["a", "b", "c", "d"], index_name="name", initial=2)
    play, slider = figure.children[0].children
    assert (play.value, play.max, slider.value, slider.max) == (2, 3, 2, 3)
    assert links(figure) == {
        frozenset([("PlayModel", "value"), ("AnyModel", "position")]),
        frozenset([("IntSliderModel", "value"), ("AnyModel", "position")]),
    }


def test_one_panel_has_no_slider():
    assert len(panels({"x": frames(1)}, index=[0]).children) == 1


def test_panels_repr():
    figure = panels({"x_t": frames(), "x̂₀": np.zeros((4, 2, 1, 3, 2))}, index=[9, 5, 1, 0])
    expected = "panels: 4 frames t = 9 … 0, 2 images 1×3×2: x_t (mean -0.8), x̂₀ (mean 0.0)"
    assert repr(figure) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"frames": frames()}, TypeError, "frames must be a dict"),
        ({"frames": {}}, TypeError, "frames must be a dict of .* got {}"),
        ({"frames": {"x": frames()[0]}}, ValueError, r"frames\['x'\] .* got \(2, 1, 3, 2\)"),
        ({"frames": {"x": frames(channels=2)}}, ValueError, r"frames\['x'\] .* \(4, 2, 2, 3, 2\)"),
        (
            {"frames": {"x": frames(), "y": frames(5)}},
            ValueError,
            r"frames\['y'\] must have the first one's shape \(4, .* got \(5, 2, 1, 3, 2\)",
        ),
        ({"frames": {"x": frames() * np.nan}}, ValueError, r"frames\['x'\] contains NaN"),
        ({"frames": {"x": frames().astype(int)}}, TypeError, r"frames\['x'\] .* got dtype int64"),
        ({"index": [0, 1]}, ValueError, "index .* each of the 4 frames, got 2"),
        ({"index": [0, 0.5, 1, 2]}, TypeError, "index must be a row of integers or texts"),
        ({"captions": ["a"]}, ValueError, "captions .* each of the 2 images of a frame, got 1"),
        ({"labels": ["a"]}, ValueError, "labels .* each of the 4 frames, got 1"),
        ({"initial": 4}, ValueError, "initial must be an integer of 0 … 3, got 4"),
    ],
)
def test_panels_refuse(change, error, message):
    with pytest.raises(error, match=message):
        panels(**{"frames": {"x": frames()}, "index": [3, 2, 1, 0], **change})


# Curves


def test_curves_state_holds_four_digits():
    view = curves([0, 1], {"a": [1 / 3, 12345.6], "b": [0, -1e-9]}, x_name="t", y_name="y").view
    assert view.data == {
        "x": [0.0, 1.0],
        "names": ["a", "b"],
        "values": [[0.3333, 12350.0], [0.0, -1e-9]],
    }
    assert not view.has_marker


def test_curves_marker():
    figure = curves(range(5), {"a": range(5)}, x_name="t", y_name="y", marker=3)
    assert (figure.slider.value, figure.slider.max, figure.view.position) == (3, 4, 3)
    assert links(figure) == {frozenset([("IntSliderModel", "value"), ("AnyModel", "position")])}


def test_curves_grow_in_one_message():
    figure = curves([], {"loss": []}, x_name="step", y_name="loss", marker=0)
    seen = []
    figure.view.observe(lambda change: seen.append((change.name, change.new)))
    figure.update([1, 2, 3], {"loss": [3, 2, 1]})
    assert seen == [
        ("data", {"x": [1.0, 2.0, 3.0], "names": ["loss"], "values": [[3.0, 2.0, 1.0]]})
    ]
    assert figure.slider.max == 2


def test_curves_repr():
    empty = curves([], {"loss": []}, x_name="step", y_name="loss")
    assert repr(empty) == "curves: 0 points, loss: loss"
    empty.update([1, 2], {"loss": [0.26, 0.3]})
    assert repr(empty) == "curves: 2 points, step = 1 … 2, loss: loss (mean 0.3)"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1, 0]}, ValueError, "x must be one ascending row"),
        ({"x": [[0, 1]]}, ValueError, r"x must be one ascending row .* \(1, 2\)"),
        ({"x": [0, np.nan]}, ValueError, "x contains NaN"),
        ({"series": [1, 2]}, TypeError, r"series must be a dict of .* got \[1, 2\]"),
        ({"series": {"a": [1]}}, ValueError, r"series\['a'\] must have 2 numbers .* \(1,\)"),
        ({"series": {"a": [1, np.inf]}}, ValueError, r"series\['a'\] contains NaN or infinity"),
        ({"series": {"a": [1, 0]}, "log_y": True}, ValueError, r"series\['a'\] must be above 0"),
        ({"marker": 2}, ValueError, "marker must be an integer of 0 … 1, got 2"),
    ],
)
def test_curves_refuse(change, error, message):
    with pytest.raises(error, match=message):
        curves(**{"x": [0, 1], "series": {"a": [1, 2]}, "x_name": "x", "y_name": "y", **change})


def test_a_refused_update_changes_nothing():
    figure = curves([0, 1], {"a": [1, 2]}, x_name="x", y_name="y", marker=1)
    before = figure.view.data
    with pytest.raises(ValueError, match="x contains NaN"):
        figure.update([0, 1, np.nan], {"a": [1, 2, 3]})
    assert figure.view.data == before
    assert figure.slider.max == 1


# Charts


def states(**change):
    """Charts of three categories over two frames."""
    bars = {"q": [[0.5, 0.25, 0.25], [1, 0, 0]]}
    names = {"index_name": "step", "x_name": "state", "y_name": "probability"}
    return charts(**{"index": [9, 0], "x": ["a", "b", "c"], "bars": bars, **names, **change})


def held(view):
    """The values of each series as the page reads them, (K or 1, F or 1, n)."""
    values, start, rows = from_triples(view.values), 0, {}
    for one in view.series:
        shape = (one["choices"], one["frames"], len(view.x))
        rows[one["name"]] = values[start : start + np.prod(shape)].reshape(shape)
        start += np.prod(shape)
    assert start == len(values)
    return rows


def test_charts_state():
    view = states(lines={"π": [0.4, 0.3, 0.3]}, labels=["start", "end"], initial=1).view
    assert (view.x, view.index) == (["a", "b", "c"], [9, 0])
    assert (view.index_name, view.x_name, view.y_name) == ("step", "state", "probability")
    assert (view.choices, view.labels, view.choice) == ([], [["start", "end"]], 0)
    assert view.position == 1
    assert [one["kind"] for one in view.series] == ["bars", "line"]
    rows = held(view)
    assert rows["q"].tolist() == [[[0.5, 0.25, 0.25], [1, 0, 0]]]
    assert rows["π"].tolist() == [[[0.4, 0.3, 0.3]]]  # once, for both frames
    assert states(x=[1, 1234.5678, 2000]).view.x == [1, 1234.5678, 2000]


def test_charts_hold_what_each_choice_and_frame_needs():
    choices = {"choices": ["u", "v"], "choice_name": "start"}
    lines = {
        "all": np.arange(12).reshape(2, 2, 3),
        "choice": np.arange(6).reshape(2, 1, 3),
        "frame": [[1], [2]],
        "level": 7,
    }
    labels = [["u0", "u1"], ["v0", "v1"]]
    view = states(bars=None, lines=lines, labels=labels, **choices).view
    assert view.labels == labels
    rows = held(view)
    assert rows["all"].tolist() == lines["all"].tolist()
    assert rows["choice"].tolist() == lines["choice"].tolist()
    assert rows["frame"].tolist() == [[[1, 1, 1], [2, 2, 2]]]
    assert rows["level"].tolist() == [[[7, 7, 7]]]
    assert states(labels="ab", **choices).view.labels == [["a", "b"]]  # for both choices


def test_charts_controls():
    choices = {"choices": ["u", "v"], "choice_name": "start"}
    figure = states(initial=1, **choices)
    play, slider, choice = figure.children[0].children
    assert (play.value, play.max, slider.value, slider.max) == (1, 1, 1, 1)
    assert play.interval == 400
    assert (slider.description, choice.description) == ("step", "start")
    assert choice.label == "u"
    assert links(figure) == {
        frozenset([("PlayModel", "value"), ("AnyModel", "position")]),
        frozenset([("IntSliderModel", "value"), ("AnyModel", "position")]),
        frozenset([("DropdownModel", "index"), ("AnyModel", "choice")]),
    }


def test_one_chart_has_no_slider_but_its_choices():
    assert len(states(index=[0], bars={"q": [1, 0, 0]}).children) == 1
    figure = states(index=[0], bars={"q": [1, 0, 0]}, choices="uv", choice_name="start")
    [choice] = figure.children[0].children
    assert choice.description == "start"


def test_charts_repr():
    expected = "charts: 2 frames step = 9 … 0, 3 state: q (mean 0.3), r (mean 0.3), s (mean 7)"
    quarter = np.full((2, 3), 0.25) - 1e-17  # that rounding moved
    assert repr(states(lines={"r": quarter, "s": 7})) == expected
    figure = states(lines={"r": quarter, "s": 7}, choices="uv", choice_name="start")
    assert repr(figure) == expected.replace("2 frames", "2 × 2 frames")


def test_charts_hold_four_digits_in_three_bytes():
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000) * 10.0 ** generator.integers(-30, 37, 5000)
    values = [0, 1, -1, 0.1, 1e-36, 9.9995, 0.99995, 3e38, *values.tolist()]
    data = to_triples(np.array(values))
    assert len(data) == 3 * len(values)
    assert from_triples(data).tolist() == [float(f"{v:.4g}") for v in values]
    assert from_triples(to_triples(np.array([1e-300, -1e-38]))).tolist() == [0, 0]


def test_charts_are_light():
    frames = np.random.default_rng(0).random((2, 100, 200))
    names = {"x_name": "x", "y_name": "density"}
    figure = charts(
        range(100), np.arange(200), bars={"a": frames[0]}, lines={"b": frames[1]}, **names
    )
    assert len(json.dumps(dependency_state([figure]))) < 200_000


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": []}, TypeError, "index must be a row of integers or texts"),
        ({"index": np.zeros(0, int)}, ValueError, "index must hold at least one value"),
        (
            {"index": [0, 0.5]},
            TypeError,
            "index must be a row of integers or texts, got .* float64",
        ),
        ({"x": [1, 1, 2]}, ValueError, r"x must be a row of ascending numbers.* got shape \(3,\)"),
        ({"x": [3, 2, 1]}, ValueError, "x must be a row of ascending numbers"),
        ({"x": [1]}, ValueError, "x must be .* at least two"),
        ({"x": []}, ValueError, "x must be .* at least two"),
        ({"x": ["a", 1, "c"]}, TypeError, "x must hold real numbers"),
        ({"x": [1, 2, np.nan]}, ValueError, "x contains NaN"),
        ({"bars": None}, ValueError, "bars and lines must have 1 … 4 names in all"),
        ({"bars": [1, 2, 3]}, TypeError, r"bars must be a dict of name .* got \[1, 2, 3\]"),
        ({"lines": [1, 2, 3]}, TypeError, "lines must be a dict"),
        ({"lines": {name: 1 for name in "abcd"}}, ValueError, "1 … 4 names .*'q', 'a', 'b', 'c', "),
        ({"lines": {"q": 1}}, ValueError, r"no two alike, got \['q', 'q'\]"),
        (
            {"x": [1, 2, 3], "bars": {"q": 1, "r": 1}},
            ValueError,
            r"bars over numbers x must have one name, got \['q', 'r'\]",
        ),
        (
            {"bars": {"q": np.ones((3, 2))}},
            ValueError,
            r"bars\['q'\] must broadcast to \(F, n\) = \(2, 3\), got shape \(3, 2\)",
        ),
        ({"bars": {"q": np.ones((1, 2, 3))}}, ValueError, r"bars\['q'\] must broadcast"),
        (
            {"lines": {"a": np.ones((3, 1, 3))}, "choices": "uv", "choice_name": "start"},
            ValueError,
            r"lines\['a'\] must broadcast to \(K, F, n\) = \(2, 2, 3\), got shape \(3, 1, 3\)",
        ),
        ({"bars": {"q": [1, 2, np.inf]}}, ValueError, r"bars\['q'\] contains NaN or infinity"),
        (
            {"bars": {"q": [1, 2, 1e39]}},
            ValueError,
            r"bars\['q'\] must .* at most 3e38, got 1e\+39",
        ),
        ({"choices": ["u", "v"]}, TypeError, "choices and choice_name go together"),
        ({"choice_name": "start"}, TypeError, "choices and choice_name go together"),
        ({"choices": ["u"], "choice_name": "start"}, ValueError, "choices must hold at least two"),
        ({"choices": [], "choice_name": "start"}, ValueError, "choices must hold at least two"),
        ({"labels": ["a"]}, ValueError, "labels .* each of the 2 frames, got 1"),
        (
            {"labels": [["a", "b"]], "choices": "uv", "choice_name": "start"},
            ValueError,
            "labels must hold one row for each of the 2 choices, got 1",
        ),
        (
            {"labels": [["a", "b"], ["a"]], "choices": "uv", "choice_name": "start"},
            ValueError,
            r"labels\[1\] .* each of the 2 frames, got 1",
        ),
        ({"initial": 2}, ValueError, "initial must be an integer of 0 … 1, got 2"),
    ],
)
def test_charts_refuse(change, error, message):
    with pytest.raises(error, match=message):
        states(**change)


# Together


def two_panels(**change):
    return panels({"x": frames(2)}, index=[9, 0], **change)


def all_links():
    """All links of this process, as a notebook saves them: ((id, trait), (id, trait)) each."""
    state = ipywidgets.Widget.get_manager_state()["state"]

    def end(reference, trait):
        return reference.removeprefix("IPY_MODEL_"), trait

    links = [m["state"] for m in state.values() if m["model_name"] == "LinkModel"]
    return [(end(*link["source"]), end(*link["target"])) for link in links]


def marked(**change):
    series = {"a": [1, 2]}
    return curves(**{"x": [9, 10], "series": series, "x_name": "t", "y_name": "y", **change})


def test_together_ties_the_positions():
    figure = together(two_panels(initial=1), states(), marked(marker=0))
    play, slider = figure.children[0].children
    assert len(figure.children) == 4
    assert [view.position for view in figure.views] == [1, 1, 1]
    first, *others = [(view.model_id, "position") for view in figure.views]
    ends = all_links()
    for other in others:
        assert (first, other) in ends
    for control in (play, slider):
        assert ((control.model_id, "value"), first) in ends


def test_nothing_moves_the_views_when_the_page_loads():
    # A link sets its target to its source then; so must the unseen sliders of the others be set.
    figure = together(two_panels(initial=1), states(), marked(marker=0))
    state = ipywidgets.Widget.get_manager_state()["state"]
    tied = {view.model_id: 0 for view in figure.views}
    for link in all_links():
        for one, other in (link, link[::-1]):
            if one[0] in tied:
                tied[one[0]] += 1
                assert state[other[0]]["state"][other[1]] == 1
    assert list(tied.values()) == [4, 3, 2]


def test_together_keeps_the_choices_of_all_and_can_be_nested():
    def inner():
        return together(two_panels(), states(choices="uv", choice_name="start"))

    for figure, names in [
        (together(inner(), marked(marker=1)), ["PanelsView", "ChartsView", "CurvesView"]),
        (together(marked(marker=1), inner()), ["CurvesView", "PanelsView", "ChartsView"]),
    ]:
        assert [type(view).__name__ for view in figure.children[1:]] == names
        assert figure.children[0].children[-1].description == "start"
        assert len({view.position for view in figure.views}) == 1


def test_together_repr_is_shown_whole():
    figure = together(two_panels(), states())
    assert repr(figure) == f"{two_panels()} + {states()}"
    assert len(repr(figure)) > 110  # which ipywidgets 8 would cut
    if ipywidgets.__version__ >= "8":
        assert figure._repr_mimebundle_()["text/plain"] == repr(figure)
        assert len(figure._repr_mimebundle_()) == 2


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ([states().view], TypeError, r"others\[0\] must be what .* returned, got ChartsView"),
        (
            [states(), panels({"x": frames(3)}, index=[2, 1, 0])],
            ValueError,
            r"others\[1\] must have as many places as the first figure, 2, got 3",
        ),
        ([marked()], ValueError, r"others\[0\] has no slider .*: curves: 2 points"),
        ([panels({"x": frames(1)}, index=[2])], ValueError, r"others\[0\] has no slider"),
        ([noise_laboratory(IMAGES)], ValueError, r"others\[0\] has no slider .*noise_laboratory"),
        ([gaussian_laboratory()], ValueError, r"others\[0\] has no slider .*gaussian_laboratory"),
    ],
)
def test_together_refuses(others, error, message):
    with pytest.raises(error, match=message):
        together(two_panels(), *others)


def test_together_refuses_a_first_figure_without_a_slider():
    with pytest.raises(ValueError, match="figure has no slider .*: curves: 2 points"):
        together(marked(), two_panels())
    with pytest.raises(TypeError, match="figure must be what panels, charts .* got dict"):
        together({}, two_panels())


# The laboratories of Gaussians


def test_gaussian_laboratory():
    figure = gaussian_laboratory(-1, 0.5, samples=7, seed=3)
    view = figure.view
    assert (view.mu, view.sigma, view.samples, view.seed) == (-1, 0.5, 7, 3)
    mu, sigma = figure.children[0].children
    assert (mu.value, mu.min, mu.max, mu.description) == (-1, -3, 3, "μ")
    assert (sigma.value, sigma.min, sigma.max, sigma.description) == (0.5, 0.1, 3, "σ")
    assert links(figure) == {
        frozenset([("FloatSliderModel", "value"), ("AnyModel", "mu")]),
        frozenset([("FloatSliderModel", "value"), ("AnyModel", "sigma")]),
    }


def test_gaussian_laboratory_repr():
    x = 2 + 0.5 * laboratory_noise(1, (7,))
    expected = f"mean {x.mean():.2f}, standard deviation {np.std(x, ddof=1):.2f}"
    text = repr(gaussian_laboratory(2, 0.5, samples=7, seed=1))
    assert text == f"gaussian_laboratory: μ = 2, σ = 0.5, 7 samples with {expected}"


def test_divergence_laboratory():
    figure = divergence_laboratory((0.5, 1), q=(-1, 2))
    view = figure.view
    assert (view.p_mu, view.p_sigma, view.q_mu, view.q_sigma) == (0.5, 1, -1, 2)
    sliders = figure.children[0].children
    assert [s.description for s in sliders] == ["μ of p", "σ of p", "μ of q", "σ of q"]
    assert [s.value for s in sliders] == [0.5, 1, -1, 2]
    assert [(s.min, s.max, s.step) for s in sliders] == [(-3, 3, 0.05), (0.1, 3, 0.05)] * 2
    assert links(figure) == {
        frozenset([("FloatSliderModel", "value"), ("AnyModel", trait)])
        for trait in ("p_mu", "p_sigma", "q_mu", "q_sigma")
    }


def test_divergence_laboratory_repr():
    # KL = ln 1.5 + (1 + 1) / 4.5 − 1/2, and −ln 1.5 + (2.25 + 1) / 2 − 1/2.
    expected = "p = N(0, 1²), q = N(1, 1.5²), KL(p‖q) = 0.3499, KL(q‖p) = 0.7195"
    assert repr(divergence_laboratory()) == f"divergence_laboratory: {expected}"


@pytest.mark.parametrize(
    ("p", "q"), [((0, 1), (1, 1.5)), ((-2, 0.3), (1, 0.9)), ((2, 3), (2, 3)), ((0, 0.1), (0, 3))]
)
def test_divergence_is_the_integral(p, q):
    x = np.linspace(p[0] - 12 * p[1], p[0] + 12 * p[1], 20_001)
    log_p, log_q = (
        -0.5 * ((x - mu) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi)) for mu, sigma in (p, q)
    )
    integral = (np.exp(log_p) * (log_p - log_q)).sum() * (x[1] - x[0])
    assert gaussian_kl(p, q) == pytest.approx(integral, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gaussian_laboratory(3.5), ValueError, "mu must be a number of -3 … 3, got 3.5"),
        (lambda: gaussian_laboratory("0"), TypeError, "mu must be a number of -3 … 3, got '0'"),
        (lambda: gaussian_laboratory(True), TypeError, "mu must be a number"),
        (lambda: gaussian_laboratory(np.nan), ValueError, "mu must be a number of .* got nan"),
        (lambda: gaussian_laboratory(0, 0), ValueError, "sigma must be a number of 0.1 … 3, got 0"),
        (lambda: gaussian_laboratory(samples=1), ValueError, "samples must be an integer of 2 …"),
        (lambda: gaussian_laboratory(samples=9.0), TypeError, "samples must be an integer of 2 …"),
        (lambda: gaussian_laboratory(seed=-1), ValueError, "seed must be an integer of 0 …"),
        (lambda: divergence_laboratory(p=(4, 1)), ValueError, "the mean of p must be .* got 4"),
        (
            lambda: divergence_laboratory(q=(0, 0.05)),
            ValueError,
            "the standard deviation of q must be a number of 0.1 … 3, got 0.05",
        ),
        (lambda: divergence_laboratory(p=(0, 1, 2)), ValueError, "p must be a mean and a standard"),
    ],
)
def test_gaussian_laboratories_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


# All views


@pytest.mark.parametrize(
    "figure",
    [
        lambda: noise_laboratory(IMAGES),
        lambda: panels({"x": frames()}, index=[3, 2, 1, 0]),
        lambda: curves([0, 1], {"a": [1, 2]}, x_name="x", y_name="y"),
        lambda: states(),
        lambda: gaussian_laboratory(-0.05, 0.15, samples=100),
        lambda: divergence_laboratory((-0.05, 0.15), (-0.15, 0.15)),
    ],
)
def test_views_are_small_and_their_text_is_stable(figure):
    first, second = figure(), figure()
    assert repr(first) == repr(second)
    assert len(repr(first)) <= 110  # longer texts are cut by ipywidgets 8
    state = dependency_state([first])
    assert len(json.dumps(state)) < 60_000
    assert isinstance(first, ipywidgets.VBox)


def test_line_colours_stand_out_on_light_and_dark_pages():
    source = (HERE / "common.js").read_text(encoding="utf-8")
    row = re.search(r"COLOURS = \[(.*)\]", source).group(1)
    colours = re.findall(r"#[0-9a-f]{6}", row)
    assert len(colours) == 4
    for colour in colours:
        for page in ["#ffffff", "#121212"]:
            light, dark = sorted([luminance(colour), luminance(page)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.1, 1.4.11


def luminance(colour):
    """Relative luminance of WCAG 2.1."""
    channels = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
