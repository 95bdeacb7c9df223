"""The network of the blog post that the book grew from, with its mistakes mended.

Layers, widths and wiring are the post's, and so is its size. Mended is what stops it with an
error (the names, the classes for objects, the shapes of the time embedding, a fractional number
of channels, an option that "nearest" refuses, the missing encoding and device), and two things
that run and are wrong: a normalisation right on the image, which hid the level of the noise
from it, and convolutions that follow each other with no nonlinearity between.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv(nn.Module):
    """Two convolutions, with `mult` times the channels between them."""

    def __init__(self, in_channels, out_channels, mult=2.0, residual=False, image=False):
        super().__init__()
        between = int(mult * out_channels)
        self.net = nn.Sequential(
            # Neither on an image: its scale is what tells noise levels apart.
            nn.Identity() if image else nn.GroupNorm(1, in_channels),
            nn.Identity() if image else nn.GELU(),
            nn.Conv2d(in_channels, between, 3, padding=1),
            nn.GELU(),
            nn.GroupNorm(1, between),
            nn.Conv2d(between, out_channels, 3, padding=1),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.net(x)) if self.residual else self.net(x)


class Resample(nn.Module):
    """The post's Down and Up: change the size, join a skip if there is one, add the time."""

    def __init__(self, size: nn.Module, in_channels, out_channels, mult, emb_dim=256):
        super().__init__()
        self.size = size
        self.block = nn.Sequential(
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels, mult),
        )
        self.pos_emb = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))

    def forward(self, x: Tensor, t: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.size(x)
        x = self.block(x if skip is None else torch.cat([skip, x], dim=1))
        return x + self.pos_emb(t)[:, :, None, None]


class PostUNet(nn.Module):
    """`model(x_t, t)` for images (B, 1, H, W), H and W divisible by 16."""

    def __init__(self, emb_dim: int = 256):
        super().__init__()
        widths = (64, 128, 256, 512)
        self.emb_dim = emb_dim
        self.down_convs, self.downs = nn.ModuleList(), nn.ModuleList()
        for before, width in zip((1, *widths), widths, strict=False):
            self.down_convs.append(DoubleConv(before, width, image=before == 1))
            self.downs.append(Resample(nn.MaxPool2d(2), width, width, 2))
        self.middle = DoubleConv(512, 512)
        self.ups, self.up_convs = nn.ModuleList(), nn.ModuleList()
        for width, after in zip(reversed(widths), (256, 128, 64, None), strict=True):
            self.ups.append(Resample(nn.Upsample(scale_factor=2), 2 * width, width, 1 / 2))
            if after:
                self.up_convs.append(DoubleConv(width, after))
        self.out = nn.Conv2d(64, 1, 1)

    def pos_encoding(self, t: Tensor) -> Tensor:
        powers = torch.arange(0, self.emb_dim, 2, device=t.device) / self.emb_dim
        angles = t[:, None].float() / 10_000**powers  # (B, emb_dim / 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.pos_encoding(t)
        skips = []
        for conv, down in zip(self.down_convs, self.downs, strict=True):
            skips.append(conv(x))
            x = down(skips[-1], t)
        x = self.middle(x)
        for conv, up in zip([*self.up_convs, nn.Identity()], self.ups, strict=True):
            x = conv(up(x, t, skips.pop()))
        return self.out(x)
