"""The Python side of the sliders. Runs under ipywidgets 7 and 8, without torch."""

import json
import re
from statistics import NormalDist

import ipywidgets
import numpy as np
import pytest
from ipywidgets.embed import dependency_state

from diffusion_lib.interactive import curves, laboratory_noise, noise_laboratory, panels
from diffusion_lib.interactive._common import HERE, from_bytes, to_bytes

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


# All views


@pytest.mark.parametrize(
    "figure",
    [
        lambda: noise_laboratory(IMAGES),
        lambda: panels({"x": frames()}, index=[3, 2, 1, 0]),
        lambda: curves([0, 1], {"a": [1, 2]}, x_name="x", y_name="y"),
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
