"""The parts of the benchmark that need neither the peers nor time."""

import json

import pytest
import torch
from torch import nn

from benchmarks import environment, networks, peers, processes, recipes, report, trials
from benchmarks.post import PostUNet
from diffusion_lib.data import Dataset
from diffusion_lib.schedule import NoiseSchedule


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t, t):
        return self.conv(x_t)


@pytest.fixture(scope="module")
def post():
    torch.manual_seed(0)
    return PostUNet().eval().requires_grad_(False)


def test_the_posts_network_has_the_posts_size(post):
    assert sum(weight.numel() for weight in post.parameters()) == 103_900_833


def test_the_posts_network_sees_the_time_and_the_scale_of_the_image(post):
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    early, late = (post(x, torch.full((2,), t)) for t in (1, 1000))
    assert early.shape == x.shape
    assert (early - late).abs().mean() > 1e-3
    # The post's own first normalisation made these two equal.
    assert (early - post(3 * x + 5, torch.full((2,), 1))).abs().mean() > 1e-3
    # One image at a time gives the same, so no image sees another.
    torch.testing.assert_close(post(x[1:], torch.tensor([1])), early[1:], rtol=1e-4, atol=1e-5)


def test_skips_of_the_posts_network_join_equal_resolutions(post):
    shapes = []
    hooks = [
        up.register_forward_pre_hook(lambda _, args: shapes.append((args[0].shape, args[2].shape)))
        for up in post.ups
    ]
    post(torch.zeros(1, 1, 32, 32), torch.tensor([1]))
    for hook in hooks:
        hook.remove()
    for (_, _, height, width), (_, _, skip_height, skip_width) in shapes:
        assert (skip_height, skip_width) == (2 * height, 2 * width)
    assert [skip[2] for _, skip in shapes] == [4, 8, 16, 32]


def test_operations_of_a_convolution():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x_t, t):
            return self.conv(x_t)

    # Each of 8·6 pixels in 5 channels is a sum of 3·3·3 products.
    assert networks.forward_flop(Conv(), (3, 8, 6)) == 2 * (8 * 6) * 5 * (3 * 3 * 3)


def test_schedules_of_the_peers():
    log_linear = networks.log_linear()
    sigma = (-log_linear.log_snr[1:].double() / 2).exp()
    torch.testing.assert_close(
        sigma[[0, -1]], torch.tensor([0.01, 20.0], dtype=torch.float64), rtol=1e-5, atol=0
    )
    ratios = sigma[1:] / sigma[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-4, atol=0)

    sigmoid = networks.sigmoid()
    assert sigmoid.alpha_bar[500].item() == pytest.approx(0.5, abs=1e-6)  # it is antisymmetric
    assert sigmoid.alpha_bar[-1] < 1e-4


def test_own_recipe_goes_on_where_it_stopped():
    images = torch.arange(4 * 16, dtype=torch.uint8).view(4, 1, 4, 4)
    dataset = Dataset("ramp", images, torch.zeros(4, dtype=torch.int64))
    schedule = NoiseSchedule.cosine(10)
    recipe = networks.Recipe(
        NoiseSchedule.cosine, "noise", lambda weights: torch.optim.Adam(weights, 0.01), 0.9, 2, 1.0
    )

    def start(resume=None):
        torch.manual_seed(0)
        return recipes.train_own(Small(), schedule, dataset, recipe, 2, seed=0, resume=resume)

    whole = start()
    states = [next(whole) for _ in range(4)]
    first = start()
    next(first)
    saved = next(first).tensors()
    second = start(saved)
    last = [next(second) for _ in range(2)][-1]
    assert last.step == states[-1].step == 4
    for name in ("model", "average"):
        weights, expected = getattr(last, name).state_dict(), getattr(states[-1], name).state_dict()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
        assert not torch.equal(weights["conv.weight"], Small().conv.weight)


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [(1e6, 128), (2000 * 128, 128), (2000 * 128 - 1, 64), (32_000, 16), (1, 8)],
)
def test_batch_leaves_enough_updates(images, batch_size):
    assert peers.batch_for(images) == batch_size


def test_command_that_is_kept_names_no_folder():
    given = ["--minutes", "2", "--work", "elsewhere/work", "--only", "ours", "--out=else/x.json"]
    assert peers.parse(given).arguments == ["--minutes", "2", "--only", "ours"]


@pytest.fixture
def options(tmp_path):
    return peers.parse(["--work", str(tmp_path / "work"), "--minutes", "3", "--rounds", "2"])


def test_work_folder_of_another_run_is_refused(options):
    first = peers.check_work(["ours"], options)
    assert peers.check_work(["ours"], options) == json.loads(json.dumps(first))
    options.seed = 1
    with pytest.raises(SystemExit, match="other seed"):
        peers.check_work(["ours"], options)


def test_result_and_table(options):
    def speed(parameters, rate):
        rates = peers.spread([rate, 3 * rate, 2 * rate])
        return {
            **{"parameters": parameters, "gflop": 0.5, "batch_size": 64, "threads": 2},
            "memory_mib": {"before": 700.0, "training": 1536.0},
            **{"training": rates, "sampling": rates, "share": peers.spread([0.25, 0.5, 0.4])},
        }

    names = ["ours", "diffusers"]
    settings = peers.check_work(names, options)
    work = options.work
    peers.write_json(
        work / "speed.json",
        {
            "peak_gflops": peers.spread([90.0, 100.0]),
            "networks": {"ours": speed(3_456_789, 100.0), "diffusers": speed(1_700_000, 1.5)},
        },
    )
    peers.write_json(work / "machine.json", {"threads": 2, "versions": {"torch": "2.x"}})
    peers.write_json(work / "floor.json", {"distance": {"value": 0.1, "low": 0.09, "high": 0.11}})
    for place, value in (("ours-common", 1.5), ("diffusers-common", 30), ("diffusers-own", 6.0)):
        distance = {"value": value, "low": value - 0.25, "high": value + 0.25}
        (work / place).mkdir()
        peers.write_json(work / place / "report.json", {"step": 9, "seconds": 180.0})
        peers.write_json(work / place / "score.json", {"distance": distance})

    result = peers.collect(names, options, settings)
    assert report.table(result).splitlines()[2:] == [
        "| **this library** | 3.5 M | 0.50 | 200 (100–300) | 40 % (25–50) | 1.5 GiB "
        "| 200 (100–300) | 1.5 ± 0.25 | – |",
        "| diffusers | 1.7 M | 0.50 | 3 (1.5–4.5) | 40 % (25–50) | 1.5 GiB "
        "| 3 (1.5–4.5) | 30 ± 0.25 | 6 ± 0.25 |",
    ]
    told = report.summary(result)
    assert "After 3 minutes" in told
    assert "is 1.5, 0.25 times that of the best peer (diffusers, 6)" in told
    assert "really took 3.0 to 3.0 minutes" in told
    assert "The floor is 0.1 ± 0.01" in told and "torch 2.x" in told

    figure = report.plot(result)
    (ax,) = figure.axes
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert points["common recipe"] == [[1.5, 0], [30, 1]]
    assert points["its own recipe"] == [[6, 1]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["this library", "diffusers"]


def test_result_without_trainings(options):
    settings = peers.check_work(["post"], options)
    result = peers.collect(["post"], options, settings)
    assert report.table(result).splitlines()[-1] == "| the post's, mended |" + " – |" * 8
    assert "seed 0" in report.summary(result)


def test_the_readme_shows_what_was_measured():
    result = json.loads((peers.ROOT / "results" / "peers.json").read_text(encoding="utf-8"))
    text = f"{report.table(result)}\n\n{report.summary(result)}\n"
    readme = (peers.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.BEGIN in readme and report.fill(readme, text) == readme
    assert (peers.ROOT / "results" / "peers.md").read_text(encoding="utf-8") == text


def test_table_of_trials_is_that_of_the_results():
    results = environment.ROOT / "results" / "trials.json"
    text = trials.table(json.loads(results.read_text(encoding="utf-8")))
    assert results.with_suffix(".md").read_text(encoding="utf-8") == text


def test_trials_go_on_with_those_that_are_missing(tmp_path, monkeypatch):
    path, ran = tmp_path / "trials.json", []

    def trial(settings, seconds, samples):
        ran.append(settings)
        measured = {"gflop": 0.1, "images_per_second": 9.0, "steps": 7}
        return measured | {"held_out_loss": 0.2, "frechet": 3.0}

    def run(only, seconds):
        arguments = ["trials", "--only", only, "--seconds", seconds, "--out", str(path)]
        monkeypatch.setattr("sys.argv", arguments)
        trials.main()

    monkeypatch.setattr(trials, "trial", trial)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    run("base", "5")
    run("base,deeper", "5")
    assert ran == [{}, {"blocks": 2}]
    kept = path.read_text()
    assert list(json.loads(kept)["trials"]) == ["base", "deeper"]
    with pytest.raises(SystemExit):
        run("base", "6")
    assert path.read_text() == kept


def test_processes_are_compared_round_by_round(tmp_path, monkeypatch):
    rates = iter([100, 90, 120, 150, 50, 60])  # by turns: one, two, one, two, …
    asked = []
    monkeypatch.setattr(processes, "rate", lambda *way: asked.append(way) or next(rates))
    out = tmp_path / "processes.json"
    monkeypatch.setattr("sys.argv", ["processes", "--rounds", "3", "--out", str(out)])
    processes.main()
    assert asked == [(1, 2, 60, 64), (2, 1, 60, 64)] * 3
    told = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "1.20 times as fast (0.90–1.25)" in told
    assert "| two processes, a thread each | 90 (60–150) |" in told
    with pytest.raises(SystemExit):
        monkeypatch.setattr("sys.argv", ["processes", "--steps", "20"])
        processes.main()
