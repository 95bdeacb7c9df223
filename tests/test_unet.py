"""The U-Net's shapes, its dependence on everything it is given, and its parts against formulas."""

import io
import math

import pytest
import torch
from torch import nn

from diffusion_lib.unet import PRESETS, Attention, ResidualBlock, TimeEmbedding, UNet, Up


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(module, seed=0):
    """The module with random weights everywhere: a fresh one hides most of itself behind zeros."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / fan_in**0.5)
    return module


def tiny(**changes):
    return awake(UNet(**{"widths": (8, 16), "blocks": 1, **changes}))


def image(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed))


def times(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("settings", "stride", "shapes"),
    [
        (dict(widths=(8,), blocks=1), 1, [(2, 1, 5, 7)]),
        (dict(widths=(16, 32), blocks=2), 2, [(2, 1, 8, 8), (1, 1, 2, 2), (3, 1, 6, 10)]),
        (dict(widths=(16, 8), blocks=1, channels=3), 2, [(2, 3, 4, 4)]),
        (dict(widths=(8, 8, 24), blocks=1, patch=2, channels=2), 8, [(2, 2, 16, 24)]),
        (dict(widths=(8, 16), blocks=1, patch=4), 8, [(1, 1, 8, 32)]),
    ],
)
def test_output_has_the_shape_of_the_input(settings, stride, shapes):
    model = UNet(**settings)
    assert model.stride == stride
    for shape in shapes:
        out = model(image(*shape), torch.ones(shape[0], dtype=torch.int64))
        assert out.shape == shape and out.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size", "stride", "parameters"),
    [
        ("digits", 8, 2, 412_129),
        ("mnist-cpu", 32, 8, 1_091_268),
        ("mnist-gpu", 32, 8, 16_533_380),
    ],
)
def test_presets_fit_their_images(name, size, stride, parameters):
    model = UNet(**PRESETS[name])
    assert model.stride == stride and set(PRESETS) == {"digits", "mnist-cpu", "mnist-gpu"}
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(image(1, 1, size, size), times(7)).shape == (1, 1, size, size)


def test_a_new_network_returns_zero():
    x = image(2, 1, 8, 8)
    assert (UNet(widths=(8, 16))(x, times(1, 900)) == 0).all()


def test_a_new_residual_block_passes_its_input_through():
    block, x, h = ResidualBlock(16, 16, 32), image(2, 16, 4, 4), image(2, 32)
    assert torch.equal(block(x, h), x)
    assert not torch.equal(awake(block)(x, h), x)


def test_a_new_attention_block_passes_its_input_through():
    x = image(2, 16, 4, 4)
    assert torch.equal(Attention(16)(x), x)


def test_output_depends_on_the_time():
    model, x = tiny(), image(1, 1, 8, 8).expand(4, 1, 8, 8)
    out = model(x, times(1, 2, 500, 1000))
    for i in range(4):
        for j in range(i):
            assert (out[i] - out[j]).abs().max() > 1e-3, (i, j)


def test_the_time_reaches_every_residual_block():
    model = tiny()
    model(image(2, 1, 8, 8), times(3, 700)).square().sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2 + 2 + 1  # down, middle, up
    for block in blocks:
        assert block.time.weight.grad.abs().max() > 0


def test_output_depends_on_the_label():
    model, x = tiny(classes=3), image(1, 1, 8, 8).expand(3, 1, 8, 8)
    out = model(x, times(5, 5, 5), times(0, 1, 2))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (out[i] - out[j]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "size"), [({}, 8), (dict(patch=2), 8), (dict(widths=(8, 8, 16)), 16)]
)
def test_every_output_pixel_sees_every_input_pixel(settings, size):
    model, x = tiny(**settings), image(1, 1, size, size).requires_grad_()
    out = model(x, times(10))
    for row, column in ((0, 0), (size - 1, size // 2)):
        (gradient,) = torch.autograd.grad(out[0, 0, row, column], x, retain_graph=True)
        assert (gradient.abs() > 1e-8).all()


def test_every_channel_in_reaches_every_channel_out():
    model, x = tiny(channels=3), image(1, 3, 8, 8).requires_grad_()
    out = model(x, times(10))
    for channel in range(3):
        (gradient,) = torch.autograd.grad(out[0, channel].sum(), x, retain_graph=True)
        assert (gradient.abs().amax((0, 2, 3)) > 1e-6).all()


def test_every_weight_matters():
    """No skip connection left unused, no layer built and forgotten."""
    model = tiny(classes=2, blocks=2)
    model(image(2, 1, 8, 8), times(3, 700), times(0, 1)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_skip_connections_carry_detail_past_the_bottleneck():
    """With the lowest resolution silenced, fine detail still comes through."""
    model, x = tiny(), image(1, 1, 8, 8)
    for module in model.middle:
        module.register_forward_hook(lambda module, arguments, out: torch.zeros_like(out))
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    with_detail = model(x + 0.5 * checkerboard, times(10))
    assert (with_detail - model(x, times(10))).abs().max() > 1e-2


def test_scale_and_offset_of_the_input_are_visible():
    """A normalisation straight on the input would hide both."""
    model, x = tiny(), image(1, 1, 8, 8)
    out = model(x, times(10))
    for other in (3 * x, x + 5, 3 * x + 5):
        assert (model(other, times(10)) - out).abs().max() > 0.05 * out.abs().max()
    assert not any(isinstance(m, nn.GroupNorm) for m in [model.stem, *model.stem.children()])


def test_a_sample_does_not_depend_on_its_batch():
    model, x = tiny(classes=4), image(3, 1, 8, 8)
    t, y = times(1, 400, 1000), times(0, 3, 1)
    together = model(x, t, y)
    for i in range(3):
        alone = model(x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[1] = 100 * x[1] + 7
    torch.testing.assert_close(model(changed, t, y)[[0, 2]], together[[0, 2]], rtol=0, atol=0)


def test_the_input_is_left_as_it_was():
    x = image(2, 1, 8, 8)
    kept = x.clone()
    tiny()(x, times(1, 2))
    assert torch.equal(x, kept)


def test_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = UNet(widths=(8, 16), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(456)
    again = UNet(widths=(8, 16), seed=5).state_dict()
    other = UNet(widths=(8, 16), seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_weights_survive_saving_and_loading():
    x, t, y = image(2, 1, 8, 8), times(3, 900), times(1, 0)
    model, file = tiny(classes=2), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = UNet(widths=(8, 16), blocks=1, classes=2, seed=9)
    assert not torch.equal(other(x, t, y), model(x, t, y))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x, t, y), model(x, t, y))


@pytest.mark.parametrize("width", [8, 32])
def test_time_embedding_is_sines_and_cosines(width):
    """sin and cos of t · 10000^(−2i/width), i = 0 … width/2 − 1 (Vaswani et al. 2017, 3.5)."""
    embedding = TimeEmbedding(width, 4 * width)
    embedding.net = nn.Identity()
    for t in (0, 1, 37, 1000):
        angles = [t * 10_000 ** (-2 * i / width) for i in range(width // 2)]
        wanted = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(embedding(times(t))[0], torch.tensor(wanted), rtol=0, atol=1e-4)


def test_time_embedding_tells_all_times_apart():
    embedding = TimeEmbedding(32, 128)
    embedding.net = nn.Identity()
    vectors = embedding(torch.arange(1001))
    distance = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance + 10 * torch.eye(1001)).min() > 0.1


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_softmax_of_scaled_products(heads):
    """Written out with loops over samples, heads and pixels (Vaswani et al. 2017, eq. 1)."""
    width, batch, rows, columns = 8, 2, 3, 4
    block, x = awake(Attention(width, heads=heads)), 2 * image(2, width, 3, 4)
    size = width // heads
    wanted = x.clone()
    projection = block.query_key_value.weight[:, :, 0, 0]
    for b in range(batch):
        pixels = block.norm(x)[b].reshape(width, rows * columns).T  # (H·W, width)
        query, key, value = (pixels @ projection.T + block.query_key_value.bias).split(width, 1)
        mixed = torch.empty(rows * columns, width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(rows * columns):
                score = torch.stack([query[i, part] @ k[part] for k in key]) / math.sqrt(size)
                share = score.exp() / score.exp().sum()
                mixed[i, part] = sum(w * v[part] for w, v in zip(share, value, strict=True))
        out = mixed @ block.out.weight[:, :, 0, 0].T + block.out.bias
        wanted[b] += out.T.reshape(width, rows, columns)
    assert (wanted - x).abs().max() > 0.1
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


def test_residual_block_is_scaled_and_shifted_by_the_time():
    """carry(x) + conv(SiLU(norm(conv(SiLU(norm(x)))) · (1 + scale) + shift)), norms by hand."""

    def norm(layer, x):
        groups = x.reshape(len(x), 8, -1).double()
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, correction=0)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape).float()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def silu(x):
        return x / (1 + (-x).exp())

    block, x, h = awake(ResidualBlock(16, 24, 12)), image(2, 16, 4, 4), image(2, 12)
    scale, shift = (h @ block.time.weight.T + block.time.bias).split(24, 1)
    inner = norm(block.norm_2, block.conv_1(silu(norm(block.norm_1, x))))
    inner = inner * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    wanted = block.carry(x) + block.conv_2(silu(inner))
    torch.testing.assert_close(block(x, h), wanted, rtol=1e-4, atol=1e-5)


def test_the_way_up_repeats_each_pixel_in_a_square_beside_the_skip():
    level, x, skip = Up(8, 8, blocks=0, features=4), image(1, 8, 2, 3), image(1, 8, 4, 6)
    level.narrow = nn.Identity()
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(level(x, skip, image(1, 4)), torch.cat([repeated, skip], dim=1))


@pytest.mark.parametrize("widths", [(), (12,), (8, 20)])
def test_bad_widths_are_named(widths):
    with pytest.raises(ValueError, match=r"widths must be multiples of 8.*got \(") as caught:
        UNet(widths=widths)
    assert str(widths) in str(caught.value)


X = torch.zeros(2, 1, 8, 8)
BAD_CALLS = [
    (torch.zeros(2, 3, 8, 8), times(1, 2), ValueError, r"x_t .*\(B, 1, H, W\), got \(2, 3, 8, 8\)"),
    (torch.zeros(1, 8, 8), times(1), ValueError, r"x_t must have shape .* got \(1, 8, 8\)"),
    (torch.zeros(2, 1, 7, 8), times(1, 2), ValueError, "x_t must be divisible by 2.*got 7×8"),
    (torch.zeros(2, 1, 8, 9), times(1, 2), ValueError, "x_t must be divisible by 2.*got 8×9"),
    (X, torch.tensor([1.0, 2.0]), TypeError, "t must be an int64 .*got torch.float32"),
    (X, torch.tensor([1, 2], dtype=torch.int32), TypeError, "t must be .*got torch.int32"),
    (X, times(1, 2, 3), ValueError, r"t must have shape \(2,\).*got \(3,\)"),
    (X, times(1), ValueError, r"t must have shape \(2,\).*got \(1,\)"),
    (X, times([1], [2]), ValueError, r"t must have shape \(2,\).*got \(2, 1\)"),
]


@pytest.mark.parametrize(("x_t", "t", "error", "message"), BAD_CALLS)
def test_bad_input_is_named(x_t, t, error, message):
    with pytest.raises(error, match=message):
        UNet(widths=(8, 16), blocks=1)(x_t, t)


def test_a_size_that_suits_the_patch_but_not_the_halvings_is_refused():
    with pytest.raises(ValueError, match="divisible by 8.*got 28×28: pad the images"):
        UNet(widths=(8, 8, 8), blocks=1, patch=2)(torch.zeros(1, 1, 28, 28), times(1))


def test_labels_go_with_classes():
    with pytest.raises(ValueError, match="built with classes.*None.*y is given"):
        tiny()(X, times(1, 2), times(0, 1))
    with pytest.raises(ValueError, match="built with classes.*4.*y is missing"):
        tiny(classes=4)(X, times(1, 2))
