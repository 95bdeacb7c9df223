"""A small classifier, whose features measure how alike two sets of images are.

    classifier = load_classifier("mnist")
    classifier(x)           # logits
    classifier.features(x)  # what its last layer sees of an image

Two of them come with the library, "mnist" and "digits", each trained on the training images
of the data set of that name. They were made by (minutes and seconds on two CPU cores)

    python -m diffusion_lib.classifier mnist 4
    python -m diffusion_lib.classifier digits 40
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lib import checkpoint
from diffusion_lib.data import Dataset, load, to_float

# Images of this side or more are folded in squares of 2×2 pixels, to be quick on a CPU.
_LARGE = 16


class Classifier(nn.Module):
    """Six convolutions on three resolutions, then a mean over the pixels: 110,000 weights.

    channels: C of the images. classes: number of labels. widths: channels at each resolution,
    finest first; the last is F, the number of features. patch: side of the squares of pixels
    folded into channels at the input. seed: of the initial weights; the global random state is
    left as it was.

    The activation is SiLU, so that features change smoothly with the image.
    """

    def __init__(
        self,
        channels: int,
        classes: int = 10,
        widths: tuple[int, int, int] = (32, 48, 64),
        patch: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.channels, self.patch = channels, patch
        # The arguments with which the same network can be built again.
        self.settings = dict(channels=channels, classes=classes, widths=list(widths), patch=patch)
        # Not torch.manual_seed, which would seed every accelerator too.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            layers, width = [], channels * patch**2
            for level, wider in enumerate(widths):
                layers += [_Block(width, wider, 1 if level == 0 else 2), _Block(wider, wider, 1)]
                width = wider
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees: (B, F), float.

        x: float in [-1, 1], (B, C, H, W), H and W divisible by `patch`. Raises ValueError for
        another shape, TypeError for another type.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be float, in [-1, 1], got {x.dtype}")
        x = self.body(F.pixel_unshuffle(x, self.patch))  # (B, F, H/(4 patch), W/(4 patch))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes), of images like those of `features`."""
        return self.head(self.features(x))


class _Block(nn.Sequential):
    """Convolution, batch normalisation (an affine map once trained), SiLU."""

    def __init__(self, width: int, new_width: int, stride: int):
        super().__init__(
            nn.Conv2d(width, new_width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(new_width),
            nn.SiLU(),
        )


def train_classifier(
    dataset: Dataset,
    *,
    seed: int = 0,
    epochs: int = 4,
    batch_size: int = 128,
    learning_rate: float = 4e-3,  # AdamW's peak: up for a fifth of the steps, then down to 0
    weight_decay: float = 0.05,
    shift: float = 0.08,  # largest random shift, as a part of the image's side
    turn: float = 0.2,  # largest random rotation, in radians, and relative change of size
) -> Classifier:
    """Fit a new classifier to a data set by cross-entropy; the same for the same seed.

    Each image is seen `epochs` times, every time shifted by at most `shift` of its side, turned
    by at most `turn` radians and scaled by at most half of `turn`. batch_size: images in an
    update, no more than there are. learning_rate: the peak of one cycle. weight_decay: AdamW's.
    The classifier comes back on the data's device, in evaluation mode, without gradients.
    """
    device = dataset.images.device
    generator = torch.Generator(device).manual_seed(seed)
    classes = int(dataset.labels.max()) + 1
    patch = 2 if min(dataset.shape[1:]) >= _LARGE else 1
    model = Classifier(dataset.shape[0], classes, patch=patch, seed=seed)
    # Quicker by a tenth; but torch's batch normalisation gets it wrong on Apple's GPUs.
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    model = model.to(device, memory_format=layout)
    batch_size = min(batch_size, len(dataset))
    steps = len(dataset) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, epochs * steps, pct_start=0.2
    )
    for _ in range(epochs):
        order = torch.randperm(len(dataset), generator=generator, device=device)
        for rows in order[: steps * batch_size].view(steps, batch_size):
            x = _move(to_float(dataset.images[rows]), shift, turn, generator)
            x = x.contiguous(memory_format=layout)
            loss = F.cross_entropy(model(x), dataset.labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval().requires_grad_(False)


def _move(x: Tensor, shift: float, turn: float, generator: torch.Generator) -> Tensor:
    """Each image shifted, turned and scaled by chance; what comes into view is its border."""
    draw = torch.rand(len(x), 4, generator=generator, device=x.device) * 2 - 1
    angle, size = turn * draw[:, 0], 1 + turn * draw[:, 1] / 2
    cos, sin = size * angle.cos(), size * angle.sin()
    across, down = (2 * shift * draw[:, 2:]).unbind(1)  # the grid's side is 2
    map_ = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(map_, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(classifier: Classifier, dataset: Dataset) -> float:
    """Share of the data set's images whose label has the largest logit, 0 … 1.

    The classifier must be on the data's device. Raises as `Classifier.features`.
    """
    right = [
        (classifier(to_float(images)).argmax(1) == labels).sum()
        for images, labels in zip(dataset.images.split(500), dataset.labels.split(500), strict=True)
    ]
    return int(torch.stack(right).sum()) / len(dataset)


def save_classifier(path: str | os.PathLike, classifier: Classifier, about: dict[str, Any]) -> None:
    """Write the weights in float16 to `path`, and what the file says of itself beside it.

    about: anything that JSON holds; it stands in the file's header and, for a human reader, in
    a file of the same name that ends in .json. Raises OSError when a file cannot be written.
    """
    about = about | {"classifier": classifier.settings}
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in classifier.state_dict().items()
    }
    checkpoint.save(path, tensors, about)
    checkpoint.save_card(path, about)


def load_classifier(name: str | os.PathLike, device: str | torch.device = "cpu") -> Classifier:
    """The classifier "mnist" or "digits", which come with the library, or the one in a file.

    It is in float32, in evaluation mode, without gradients; what its file says of itself is
    `classifier.about`. name: one with a suffix is the path of what `save_classifier` wrote.
    device: where it goes.
    Raises ValueError for a name that there is not, and as `checkpoint.load`.
    """
    path = Path(name)
    if not path.suffix:
        path = checkpoint.WEIGHTS / f"classifier-{name}.safetensors"
        if not path.exists():
            found = checkpoint.WEIGHTS.glob("classifier-*.safetensors")
            names = sorted(p.stem.removeprefix("classifier-") for p in found)
            raise ValueError(
                f"no classifier for {name!r} comes with the library: name must be one of "
                + ", ".join(names)
            )
    tensors, about = checkpoint.load(path)
    if "classifier" not in about:
        raise checkpoint.CheckpointError(f"{path} holds no classifier")
    classifier = Classifier(**about["classifier"])
    classifier.load_state_dict(tensors)  # copied into float32
    classifier.about = about
    # Half as quick again on a CPU.
    classifier = classifier.to(device, memory_format=torch.channels_last)
    return classifier.eval().requires_grad_(False)


def main(name: str, epochs: int, seed: int = 0) -> None:
    """Train on a named data set, measure on its held-out images, write to `WEIGHTS`."""
    train, test = load(name), load(name, train=False)
    classifier = train_classifier(train, epochs=epochs, seed=seed)
    about = {
        "command": f"python -m diffusion_lib.classifier {name} {epochs} {seed}",
        "data": f"{name}, {len(train):,} training images",
        "seed": seed,
        "epochs": epochs,
        # float16 is what the file holds, so it is what is measured.
        "accuracy": accuracy(classifier.half().float(), test),
        "measured_on": f"{name}, {len(test):,} held-out images",
        "versions": checkpoint.versions(),
    }
    save_classifier(checkpoint.WEIGHTS / f"classifier-{name}.safetensors", classifier, about)
    print(f"accuracy on {about['measured_on']}: {about['accuracy']:.2%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
