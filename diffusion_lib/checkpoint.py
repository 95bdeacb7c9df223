"""Files of weights: safetensors, written whole or not at all, checked to the last bit.

A file holds named tensors and a description in JSON. Nothing in it is ever executed. Its
SHA-256 stands in its own header, so that a truncated or altered file is told from a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from diffusion_lib.objective import Target, check_target
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.unet import UNet

WEIGHTS = Path(__file__).with_name("weights")

# How the digest stands in the header, and what stands there while it is computed. Quotes within
# the description are escaped, so there is no other such place.
_FIELD = '"sha256":"{}"'
_BLANK = "0" * 64


class CheckpointError(ValueError):
    """A file that is damaged, or not one of this library's."""


class Network(NamedTuple):
    """A trained network and all that sampling from it needs."""

    model: UNet
    schedule: NoiseSchedule
    target: Target
    about: dict[str, Any]  # what the file says of itself: data, configuration, versions


def save(path: str | os.PathLike, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and their description to `path` in one step: a reader, or a machine that
    loses power, finds the old file or the new one and never a part.

    about: anything that JSON holds. Raises OSError when the file cannot be written, for want
    of space say; what was at `path` is then untouched.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"about": json.dumps(about), "sha256": _BLANK}
    data = safetensors_torch.save(tensors, metadata)
    data = _with_digest(data, _BLANK, hashlib.sha256(data).hexdigest())
    write_atomically(path, data)


def load(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in the file at `path` by name, on the CPU, each of the shape that it was saved
    with, and their description.

    Raises FileNotFoundError, or CheckpointError for a file that is truncated, altered or
    foreign.
    """
    path = Path(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        digest, about = header["sha256"], json.loads(header["about"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged, or was not written by diffusion_lib: its header cannot be read"
        ) from error
    if hashlib.sha256(_with_digest(data, digest, _BLANK)).hexdigest() != digest:
        raise CheckpointError(
            f"{path} is damaged: its contents do not match their SHA-256. "
            "It may have been cut short or altered; use another copy"
        )
    return safetensors_torch.load(data), about


def save_network(
    path: str | os.PathLike,
    model: UNet,
    schedule: NoiseSchedule,
    target: Target,
    about: dict[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write all that sampling needs to one file: the weights, the tables of the schedule, the
    target and `about`, which is anything that JSON holds.

    half: weights in float16, half the size. Raises ValueError for an unknown target, and as
    `save`.
    """
    check_target(target)
    weights = model.state_dict()
    if half:
        weights = {name: weight.half() for name, weight in weights.items()}
    tensors = prefixed("model", weights) | prefixed("schedule", schedule.tables())
    save(path, tensors, about | {"unet": model.settings, "target": target})


def load_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> Network:
    """The network in a file, in float32, ready to sample from.

    The file may be one that `save_network` wrote, or a checkpoint of a run, of which the
    average of the weights is taken. device: where its weights and its schedule go. Raises as
    `load`, and CheckpointError for a file that holds something else.
    """
    tensors, about = load(path)
    if "unet" not in about or "schedule.beta" not in tensors:
        raise CheckpointError(f"{path} holds no network to sample from")
    model = UNet(**about["unet"])
    weights = under("average", tensors) or under("model", tensors)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    schedule = NoiseSchedule(**under("schedule", tensors))
    model = model.to(device).eval().requires_grad_(False)
    return Network(model, schedule.to(device), about["target"], about)


def save_card(path: str | os.PathLike, about: dict[str, Any]) -> None:
    """Write `about`, what the file at `path` says of itself, beside it too, in JSON, for people.

    Raises OSError when it cannot be written.
    """
    card = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    write_atomically(Path(path).with_suffix(".json"), card.encode())


def load_pretrained(name: str, device: str | torch.device = "cpu") -> Network:
    """A network that comes with the library, such as "mnist". Its card is `network.about`.

    device: where its weights and its schedule go. Raises ValueError for a name that there is not.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        names = sorted(p.stem for p in WEIGHTS.glob("*.safetensors") if "classifier" not in p.stem)
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    return load_network(path, device)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `prefix.…`, the same ones, without the prefix in their names."""
    start = prefix + "."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, to the disk itself, then rename. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The rename itself lasts only once the folder is on the disk.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _with_digest(data: bytes, old: str, new: str) -> bytes:
    return data.replace(_FIELD.format(old).encode(), _FIELD.format(new).encode(), 1)


def versions() -> dict[str, str]:
    """What a result must name to be run again: Python, torch, safetensors."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, the same ones, named `prefix.…`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
