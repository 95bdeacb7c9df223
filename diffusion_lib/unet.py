"""A U-Net that knows the time (Ronneberger et al. 2015; Ho et al. 2020, appendix B).

The image goes down a ladder of resolutions, each step wider in channels, and up again; on
the way up each resolution also sees, by a skip connection, what it held on the way down.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Keyword arguments of `UNet`, smallest first. Sizes are for one channel.
PRESETS = {
    "digits": dict(widths=(32, 64), blocks=1),  # 8×8; a minute of training on a CPU
    "mnist-cpu": dict(widths=(64, 64, 64), blocks=1, patch=2),  # 32×32; minutes on a CPU
    "mnist-gpu": dict(widths=(128, 256, 256), blocks=2, patch=2),  # 32×32
}


class UNet(nn.Module):
    """The network `model(x_t, t)` or, with `classes`, `model(x_t, t, y)`.

    channels: C of the images. widths: channels at each resolution, finest first; every
    further entry halves the resolution. blocks: residual blocks at each resolution.
    patch: side of the squares of pixels folded into channels at the input (1: none).
    classes: number of labels y, or None. seed: of the initial weights; the global random
    state is left as it was.

    Takes x_t float (B, C, H, W), H and W divisible by `stride`, t int64 (B,), y int64 (B,).
    Returns a tensor like x_t. Raises ValueError for shapes that do not fit, TypeError for
    a t that is not int64.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: tuple[int, ...] = (64, 128),
        blocks: int = 2,
        patch: int = 1,
        classes: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths must be multiples of 8 (GroupNorm's groups), got {widths}")
        for name, value in dict(channels=channels, blocks=blocks, patch=patch).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if classes is not None and (not isinstance(classes, int) or classes < 1):
            raise ValueError(f"classes must be a positive integer or None, got {classes!r}")
        self.channels, self.patch, self.classes = channels, patch, classes
        # The arguments with which the same network can be built again.
        self.settings = dict(
            channels=channels, widths=list(widths), blocks=blocks, patch=patch, classes=classes
        )
        self.stride = patch * 2 ** (len(widths) - 1)
        # Not torch.manual_seed, which would seed every accelerator too.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self._build(widths, blocks)

    def _build(self, widths: tuple[int, ...], blocks: int) -> None:
        pixels = self.channels * self.patch**2
        features = 4 * widths[0]
        self.time = TimeEmbedding(widths[0], features)
        self.label = nn.Embedding(self.classes, features) if self.classes else None
        # No normalisation before this: an image's scale is what tells noise levels apart.
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Down(widths[max(level - 1, 0)], width, blocks, features, halve=level > 0)
            for level, width in enumerate(widths)
        )
        self.middle = nn.ModuleList(
            [
                ResidualBlock(widths[-1], widths[-1], features),
                Attention(widths[-1]),
                ResidualBlock(widths[-1], widths[-1], features),
            ]
        )
        self.up = nn.ModuleList(
            Up(wider, width, blocks, features) for width, wider in reversed(list(pairwise(widths)))
        )
        self.head = nn.Sequential(
            nn.GroupNorm(8, widths[0]),
            nn.SiLU(),
            _zero(nn.Conv2d(widths[0], pixels, 3, padding=1)),
        )

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self._check(x_t, t, y)
        h = self.time(t)  # (B, features)
        if y is not None:
            h = h + self.label(y)
        h = F.silu(h)

        x = self.stem(F.pixel_unshuffle(x_t, self.patch))  # (B, widths[0], H/patch, W/patch)
        skips = []
        for level in self.down:
            x = level(x, h)
            skips.append(x)
        first, attention, second = self.middle
        x = second(attention(first(x, h)), h)  # (B, widths[-1], H/stride, W/stride)
        skips.pop()  # the coarsest level leads straight into the middle
        for level in self.up:
            x = level(x, skips.pop(), h)
        return F.pixel_shuffle(self.head(x), self.patch)  # (B, C, H, W)

    def _check(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != self.channels:
            raise ValueError(
                f"x_t must have shape (B, {self.channels}, H, W), got {tuple(x_t.shape)}"
            )
        if x_t.shape[2] % self.stride or x_t.shape[3] % self.stride:
            raise ValueError(
                f"height and width of x_t must be divisible by {self.stride}, the network's "
                f"total stride, got {x_t.shape[2]}×{x_t.shape[3]}: pad the images"
            )
        if not isinstance(t, Tensor) or t.dtype != torch.int64:
            kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"t must be an int64 tensor of shape (B,), got {kind}")
        if t.shape != x_t.shape[:1]:
            raise ValueError(f"t must have shape ({len(x_t)},) like x_t, got {tuple(t.shape)}")
        if (y is None) != (self.label is None):
            raise ValueError(
                f"labels y go with a network built with classes; this one has {self.classes}, "
                f"y is {'missing' if y is None else 'given'}"
            )
        if y is not None and (y.dtype != torch.int64 or y.shape != t.shape):
            raise ValueError(
                f"y must be int64 of shape {tuple(t.shape)}, got {y.dtype} {tuple(y.shape)}"
            )
        if y is not None and y.device.type == "cpu" and not ((y >= 0) & (y < self.classes)).all():
            raise ValueError(f"y must lie in 0 … {self.classes - 1}, got {y.tolist()}")


class TimeEmbedding(nn.Module):
    """Sines and cosines of t at `width` / 2 frequencies, then a small network: (B, features).

    The frequencies fall from 1 towards 1/10,000 (Vaswani et al. 2017, section 3.5).
    """

    def __init__(self, width: int, features: int):
        super().__init__()
        frequencies = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies  # (B, width / 2)
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is carried; the time scales and shifts between.

    (B, width, H, W) → (B, new_width, H, W). The last convolution starts at zero, so that a
    new block passes its input through unchanged.
    """

    def __init__(self, width: int, new_width: int, features: int):
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, width)
        self.conv_1 = nn.Conv2d(width, new_width, 3, padding=1)
        self.time = nn.Linear(features, 2 * new_width)
        self.norm_2 = nn.GroupNorm(8, new_width)
        self.conv_2 = _zero(nn.Conv2d(new_width, new_width, 3, padding=1))
        self.carry = nn.Conv2d(width, new_width, 1) if width != new_width else nn.Identity()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.time(h)[:, :, None, None].chunk(2, dim=1)  # (B, new_width, 1, 1)
        y = self.conv_2(F.silu(self.norm_2(y) * (1 + scale) + shift))
        return self.carry(x) + y


class Attention(nn.Module):
    """Self-attention over the pixels of a coarse image: each looks at all (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.query_key_value = nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        qkv = self.query_key_value(self.norm(x)).flatten(2)  # (B, 3 width, H·W)
        split = qkv.view(batch, 3, self.heads, width // self.heads, -1).transpose(-1, -2)
        query, key, value = split.unbind(1)  # each (B, heads, H·W, width / heads)
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(seen.transpose(-1, -2).reshape(batch, width, height, columns))


class Down(nn.Module):
    """One resolution on the way down: halve the size, unless it is the finest, then blocks.

    (B, width, H, W) → (B, new_width, H/2, W/2).
    """

    def __init__(self, width: int, new_width: int, blocks: int, features: int, halve: bool):
        super().__init__()
        self.halve = nn.Conv2d(width, new_width, 3, 2, padding=1) if halve else nn.Identity()
        self.blocks = nn.ModuleList(
            ResidualBlock(new_width, new_width, features) for _ in range(blocks)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x = self.halve(x)
        for block in self.blocks:
            x = block(x, h)
        return x


class Up(nn.Module):
    """One resolution on the way up: double the size, then blocks that see the skip as well.

    (B, width, H, W), skip (B, new_width, 2H, 2W) → (B, new_width, 2H, 2W).
    """

    def __init__(self, width: int, new_width: int, blocks: int, features: int):
        super().__init__()
        # Before the pixels are repeated it costs a quarter; the blocks smooth the squares.
        self.narrow = nn.Conv2d(width, new_width, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(new_width * (1 if i else 2), new_width, features) for i in range(blocks)
        )

    def forward(self, x: Tensor, skip: Tensor, h: Tensor) -> Tensor:
        x = F.interpolate(self.narrow(x), scale_factor=2, mode="nearest")
        x = torch.cat([x, skip], dim=1)  # (B, 2 new_width, 2H, 2W)
        for block in self.blocks:
            x = block(x, h)
        return x


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
