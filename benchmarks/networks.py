"""The networks that are compared, each as `model(x_t, t)` for images (B, 1, 32, 32).

A peer is built as its own documentation builds it, and told the time in its own way. Its
library is imported only when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.post import PostUNet
from diffusion_lib.objective import Target
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.unet import PRESETS, UNet

SHAPE = (1, 32, 32)


@dataclass(frozen=True)
class Recipe:
    """How a peer's own documentation trains it, where that is not the common recipe."""

    schedule: Callable[[], NoiseSchedule]
    target: Target
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    average_decay: float = 0.0  # of the moving average of the weights; 0: there is none
    average_every: int = 1  # steps
    clip_norm: float | None = None  # longest gradient; None: any
    weight: Callable[[NoiseSchedule], Tensor] | None = None  # of the loss at t, (T + 1,)


@dataclass(frozen=True)
class Network:
    """A network to measure."""

    title: str
    build: Callable[[NoiseSchedule], nn.Module]
    own: Recipe | None = None


class Diffusers(nn.Module):
    """The network of Hugging Face's course (unit 1, "Diffusion Models from Scratch")."""

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=32,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net(x_t, t - 1).sample  # its times are 0 … T - 1


class Lucidrains(nn.Module):
    """denoising-diffusion-pytorch."""

    def __init__(self):
        super().__init__()
        from denoising_diffusion_pytorch import Unet

        self.net = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net(x_t, t - 1)  # its times are 0 … T - 1


class Smalldiffusion(nn.Module):
    """smalldiffusion, as in its examples/fashion_mnist_unet.py, attention at half size.

    Its image is x₀ + σε, which its `Scaled` multiplies by 1/√(1 + σ²) for the network: with
    σ² = (1 − ᾱ_t)/ᾱ_t that is our x_t. The network itself sees sine and cosine of ln(σ)/2.
    """

    # Beyond, the sine of the noisiest level would come round to that of the cleanest. Only
    # t = T of the cosine schedule is.
    LARGEST_SIGMA = 1000.0

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        from smalldiffusion import Unet

        self.net = Unet(
            in_dim=32, in_ch=1, out_ch=1, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(16,)
        )
        sigma = (-schedule.log_snr / 2).exp().clamp(max=self.LARGEST_SIGMA)
        self.register_buffer("sigma", sigma, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net(x_t, self.sigma[t].view(-1, 1, 1, 1))


def log_linear(T: int = 800, low: float = 0.01, high: float = 20.0) -> NoiseSchedule:
    """smalldiffusion's levels σ_1 … σ_T, evenly spaced in their logarithm."""
    sigma = torch.logspace(math.log10(low), math.log10(high), T, dtype=torch.float64)
    alpha_bar = 1 / (1 + torch.cat([sigma.new_zeros(1), sigma]) ** 2)
    return NoiseSchedule.from_beta(1 - alpha_bar[1:] / alpha_bar[:-1])


def sigmoid(T: int = 1000) -> NoiseSchedule:
    """The default of lucidrains' GaussianDiffusion: ᾱ_t a sigmoid from 3 to -3, set to 1 … 0."""
    curve = torch.linspace(3, -3, T + 1, dtype=torch.float64).sigmoid()
    alpha_bar = (curve - curve[-1]) / (curve[0] - curve[-1])
    return NoiseSchedule.from_beta((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))


NETWORKS = {
    "ours": Network("diffusion_lib", lambda schedule: UNet(**PRESETS["mnist-cpu"])),
    "diffusers": Network(
        "diffusers",
        lambda schedule: Diffusers(),
        # The course's unit 2, on MNIST.
        Recipe(
            schedule=NoiseSchedule.cosine,
            target="noise",
            optimizer=lambda weights: torch.optim.Adam(weights, lr=1e-3),
        ),
    ),
    "lucidrains": Network(
        "denoising-diffusion-pytorch",
        lambda schedule: Lucidrains(),
        # The README's learning rate, the defaults of GaussianDiffusion and Trainer.
        Recipe(
            schedule=sigmoid,
            target="velocity",
            optimizer=lambda weights: torch.optim.Adam(weights, lr=8e-5, betas=(0.9, 0.99)),
            average_decay=0.995,
            average_every=10,
            clip_norm=1.0,
            weight=lambda schedule: schedule.alpha_bar,  # SNR / (SNR + 1)
        ),
    ),
    "smalldiffusion": Network(
        "smalldiffusion",
        Smalldiffusion,
        # examples/fashion_mnist_unet.py
        Recipe(
            schedule=log_linear,
            target="noise",
            optimizer=lambda weights: torch.optim.AdamW(weights, lr=7e-4),
            average_decay=0.999,
        ),
    ),
    "post": Network(
        "the post, mended",
        lambda schedule: PostUNet(),
        # Its text and its single step, with a T that leaves something of the image.
        Recipe(
            schedule=NoiseSchedule.linear,
            target="noise",
            optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-4),
        ),
    ),
}


def build(name: str, schedule: NoiseSchedule, seed: int) -> nn.Module:
    """The named network with its own random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return NETWORKS[name].build(schedule)


@torch.no_grad()
def forward_flop(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> int:
    """Floating-point operations of one evaluation for one image; a multiply-add counts two."""
    x_t, t = torch.zeros(1, *shape), torch.ones(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(x_t, t)
    return counter.get_total_flops()
