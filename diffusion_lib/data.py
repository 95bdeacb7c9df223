"""Real images, held as uint8 on the device where they are used.

`digits` comes with the library and needs no network: the 1,797 scans of 8×8 pixels of the
"Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak 1998), as scikit-learn
ships them. `mnist` and `fashion-mnist` come through torchvision.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = ("digits", "mnist", "fashion-mnist")

# The scans come from 14 forms, one after the other; a split between two of them keeps each
# handwriting on one side.
DIGITS_TRAIN = 1545


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and their labels on one device.

    images: uint8 (N, C, H, W), 0 … 255. labels: int64 (N,).
    Raises TypeError for other types and ValueError for other shapes.
    """

    name: str
    images: Tensor
    labels: Tensor

    def __post_init__(self):
        for field in ("images", "labels"):
            if not isinstance(getattr(self, field), Tensor):
                kind = type(getattr(self, field)).__name__
                raise TypeError(f"{field} must be a torch tensor, got {kind}")
        if self.images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0 … 255), got {self.images.dtype}")
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(
                f"images must have shape (N, C, H, W), N >= 1, got {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {self.labels.dtype}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.images)},), got {tuple(self.labels.shape)}"
            )

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} images of shape {self.shape})"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` images drawn evenly with replacement, as floats in [-1, 1], and labels.

        Returns (size, C, H, W) float32 and (size,) int64. generator: on the data's device.
        """
        rows = torch.randint(len(self), (size,), generator=generator, device=self.images.device)
        return to_float(self.images[rows]), self.labels[rows]


def load(
    name: str,
    *,
    train: bool = True,
    root: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> Dataset:
    """A named data set: "digits" (1, 8, 8), "mnist" or "fashion-mnist" (1, 32, 32).

    train: the images to train on, or those held out. device: where all of them go.
    The 28×28 images are padded with black to 32×32, which five halvings divide. root: folder
    with torchvision's files; without it the one that the environment variable DIFFUSION_DATA
    names; without that the user's cache, to which the files are downloaded once.
    Raises ValueError for an unknown name or files that are damaged or of another size,
    FileNotFoundError if they are not to be had.
    """
    if name == "digits":
        images, labels = _digits(train)
    elif name in NAMES:
        images, labels = _torchvision(name, train, root)
        images = torch.nn.functional.pad(images, (2, 2, 2, 2))
    else:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return Dataset(name, images[:, None].to(device), labels.to(device))


def to_float(images: Tensor) -> Tensor:
    """uint8 0 … 255 to float32 in [-1, 1], same shape. Raises TypeError for another type."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (0 … 255), got {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float images to uint8, same shape; what lies outside [-1, 1] is clipped.

    Raises TypeError for another type.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be float, in [-1, 1], got {x.dtype}")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    with np.load(Path(__file__).with_name("digits.npz")) as archive:
        # Each pixel counts the 0 … 16 dark points of a 4×4 block of the scan.
        images = torch.from_numpy(archive["images"]).double().mul(255 / 16).round()
        labels = torch.from_numpy(archive["labels"]).long()
    rows = slice(DIGITS_TRAIN) if train else slice(DIGITS_TRAIN, None)
    return images[rows].to(torch.uint8), labels[rows]


def _torchvision(name: str, train: bool, root) -> tuple[Tensor, Tensor]:
    # Imported here, since the digits need neither torchvision nor its two seconds of import.
    from torchvision import datasets

    given = root or os.environ.get("DIFFUSION_DATA")
    folder = Path(given) if given else Path.home() / ".cache" / "diffusion_lib"
    source = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    raw = folder / source.__name__ / "raw"
    try:
        found = source(folder, train=train, download=not given)
    except (RuntimeError, OSError, ValueError) as error:
        if any(raw.glob("*-ubyte")):
            raise ValueError(
                f"the files of {name} in {raw} are damaged or not all there: {error}. "
                "Put whole ones in their place"
            ) from error
        raise FileNotFoundError(
            f"{name} is not in {folder}{'' if given else f' and could not be fetched: {error}'}. "
            "Give the folder that holds "
            f"{source.__name__}/raw as root=… or in the environment variable DIFFUSION_DATA; "
            'load("digits") needs neither folder nor network.'
        ) from error
    if found.data.shape[1:] != (28, 28) or len(found.data) != len(found.targets):
        raise ValueError(
            f"the files of {name} in {raw} are not those of 28×28 images and as many labels: "
            f"images {tuple(found.data.shape)}, labels {tuple(found.targets.shape)}"
        )
    return found.data, found.targets
