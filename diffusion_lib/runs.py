"""A training run in a folder, which can be stopped and gone on with at any moment.

The folder holds

    checkpoint-00001000.safetensors   the two latest; each is also a network to sample from
    metrics.jsonl                     a JSON object a line: how it began, then how it went
    events.out.tfevents.…             the same for TensorBoard
    samples-00001000.png              what the averaged network draws, always from the same noise
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import torch
from torch import Tensor, distributed
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from diffusion_lib import checkpoint
from diffusion_lib.checkpoint import CheckpointError, Network
from diffusion_lib.data import Dataset, load
from diffusion_lib.evaluation import error_by_level
from diffusion_lib.figures import mosaic
from diffusion_lib.sampling import dpm_solver
from diffusion_lib.schedule import NoiseSchedule
from diffusion_lib.training import GPU_CHECKS_EVERY, TrainConfig, TrainState, may_read, train
from diffusion_lib.unet import PRESETS as NETWORKS
from diffusion_lib.unet import UNet

DataName = Literal["digits", "mnist", "fashion-mnist"]

# What may differ between two starts of the same run, since it changes no weight.
FREE = {"compile", "log_every", "checkpoint_every", "evaluate_every"}

SCORED = 256  # held-out images on which a run measures its error as it goes


@dataclass(frozen=True)
class RunConfig:
    """A training run: data, network, and how to train."""

    out: Path  # folder of the run, made if need be. A run that is there already is gone on with
    # the images to learn: 8×8 for the digits, which come with the library, else 32×32
    data: DataName = "digits"
    # folder with torchvision's files; without it $DIFFUSION_DATA, then the user's cache
    root: Path | None = None
    # channels of the U-Net at each resolution, finest first: multiples of 8
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 1  # residual blocks at each resolution
    patch: int = 1  # side, in pixels, of the squares that are folded into channels at the input
    # how the noise grows: Nichol & Dhariwal 2021, or Ho et al. 2020
    schedule: Literal["cosine", "linear"] = "cosine"
    T: int = 1000  # number of noise levels
    training: TrainConfig = field(default_factory=TrainConfig)
    log_every: int = 10  # steps between two lines of the log
    checkpoint_every: int = 500  # steps between two checkpoints: the most that a crash can cost
    # steps between two measurements of the held-out error, each with a picture of samples
    evaluate_every: int = 500
    device: str = "auto"  # "auto" takes an accelerator if there is one; or "cpu", "cuda", "mps"

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "evaluate_every"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1 step, got {getattr(self, name)!r}")


PRESETS = {
    "cpu-minute": RunConfig(
        Path("runs/digits"),
        training=TrainConfig(steps=1000, batch_size=64),
        checkpoint_every=100,
        evaluate_every=100,
        **NETWORKS["digits"],
    ),
    "mnist-cpu": RunConfig(
        Path("runs/mnist"),
        "mnist",
        training=TrainConfig(steps=6000, batch_size=64, average_decay=0.999),
        **NETWORKS["mnist-cpu"],
    ),
    "mnist-gpu": RunConfig(
        Path("runs/mnist"),
        "mnist",
        training=TrainConfig(
            steps=4000,
            batch_size=512,
            average_decay=0.999,
            warmup=200,
            bfloat16=True,
            compile=True,
        ),
        log_every=GPU_CHECKS_EVERY,
        **NETWORKS["mnist-gpu"],
    ),
}


def run(config: RunConfig) -> Network | None:
    """Train, or go on training, in the folder `config.out`; return what it trained so far.

    Ctrl-C and SIGTERM end it after the step under way, with a checkpoint; with several GPUs
    after at most 50 steps, so that all leave at the same one. Under torchrun the processes
    share each batch, only the first one writes and returns a network, and any number of
    processes can go on; the folder must then be one that all of them see.

    Raises ValueError for a folder that holds another run, CheckpointError for a damaged
    checkpoint, FileNotFoundError without data, FloatingPointError for a loss that is not
    finite, OSError if the disk is full, RuntimeError if another process is lost. None of them
    touches the last good checkpoint.
    """
    with _processes(config.device) as (device, rank), _stop_signals() as asked:
        dataset, held_out = _load(config, device)
        schedule = getattr(NoiseSchedule, config.schedule)(config.T).to(device)
        seed = config.training.seed
        model = UNet(dataset.shape[0], config.widths, config.blocks, config.patch, seed=seed)
        model.to(device)
        about = _about(config, dataset, model)
        resume = _resume(config.out, about)
        start = int(resume["step"]) if resume else 0
        _agree(start, config.out)
        if start < config.training.steps:
            with ExitStack() as stack:
                stack.enter_context(_explained(config.out, rank))
                recorder = None
                if rank == 0:
                    recorder = _Recorder(config, about, schedule, held_out, start)
                    stack.callback(recorder.close)
                for state in train(model, schedule, dataset, config.training, resume):
                    stop = _is_asked(asked, state.step, device)
                    if recorder:
                        recorder.record(state, stop)
                    if stop:
                        break
        return checkpoint.load_network(latest(config.out), device) if rank == 0 else None


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of the run in `folder`, or None."""
    return max(Path(folder).glob("checkpoint-*.safetensors"), default=None)


@contextmanager
def _explained(folder: Path, rank: int) -> Iterator[None]:
    """Says, with an error that ends the run, from where it can go on."""
    try:
        yield
    except BlockingIOError:  # another run has the folder
        raise
    except OSError as error:
        advice = "; make room" if error.errno == errno.ENOSPC else ""
        text = f"{error.strerror}{advice}. {_kept(folder)}"
        raise OSError(error.errno, text, str(folder)) from error
    except RuntimeError as error:
        if not distributed.is_initialized():
            raise
        raise RuntimeError(
            f"process {rank} lost the others or failed: {error}\nIf another process ended, its "
            f"own message says why. {_kept(folder)}"
        ) from error


def _kept(folder: Path) -> str:
    path = latest(folder)
    if path is None:
        return "There is no checkpoint yet: the same command begins anew"
    return f"The last checkpoint, {path}, is whole: the same command goes on from it"


class _Recorder:
    """Everything that a run leaves in its folder and on the screen."""

    def __init__(
        self,
        config: RunConfig,
        about: dict[str, Any],
        schedule: NoiseSchedule,
        held_out: Dataset,
        start: int,
    ):
        config.out.mkdir(parents=True, exist_ok=True)
        self.lock = _locked(config.out)
        for partial in config.out.glob(".*.partial"):  # left by a process that was killed
            partial.unlink()
        about = about | {"made_by": provenance(schedule.beta.device)}
        self.config, self.about, self.schedule, self.held_out = config, about, schedule, held_out
        self.log = _reopened(config.out / "metrics.jsonl", start)
        self.board = SummaryWriter(config.out, purge_step=start + 1)
        self.bar = tqdm(total=config.training.steps, initial=start, unit="step")
        self.write(start, {"started": about})
        self.clock, self.counted = time.perf_counter(), start

    def record(self, state: TrainState, stop: bool) -> None:
        """Log, save, measure and draw what is due at this step: the dearest to lose comes first."""
        config, step = self.config, state.step
        _tell(self.bar.update)
        end = step == config.training.steps
        if step % config.log_every == 0 or end:
            self.log_progress(state)
        if step % config.checkpoint_every == 0 or end or stop:
            self.save(state)
        if (step % config.evaluate_every == 0 or end) and not stop:
            self.measure(state)

    def log_progress(self, state: TrainState) -> None:
        state.check()
        loss, norm = state.loss.item(), state.norm.item()
        seconds = time.perf_counter() - self.clock
        rate = (state.step - self.counted) * self.config.training.batch_size / seconds
        self.clock, self.counted = time.perf_counter(), state.step
        _tell(self.bar.set_postfix_str, f"loss {loss:.4f}, {rate:,.0f} images/s")
        values = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": state.learning_rate,
            "images_per_second": rate,
        }
        self.write(state.step, values)
        for name, value in values.items():
            self.board.add_scalar(name, value, state.step)

    def measure(self, state: TrainState) -> None:
        T, target = self.schedule.T, self.config.training.target
        levels = sorted({max(1, round(T * share)) for share in (0.01, 0.1, 0.25, 0.5, 0.75, 1)})
        errors = error_by_level(
            state.average, self.schedule, self.held_out, target=target, levels=levels, limit=SCORED
        )
        _tell(tqdm.write, _table(state.step, errors))
        self.write(state.step, {"held_out": {k: v.tolist() for k, v in errors.items()}})
        for t, error in zip(levels, errors["data"].tolist(), strict=True):
            self.board.add_scalar(f"held_out_data_error/t={t}", error, state.step)

        generator = torch.Generator().manual_seed(0)
        x_T = torch.randn(64, *self.held_out.shape, generator=generator).to(self.schedule.beta)
        steps = min(20, T)
        *_, last = dpm_solver(state.average, self.schedule, x_T, steps=steps, target=target)
        picture = mosaic(last.x_t.cpu(), 8)[0, 0].clamp(-1, 1).numpy()
        path = self.config.out / f"samples-{state.step:08d}.png"
        matplotlib.image.imsave(path, picture, cmap="gray", vmin=-1, vmax=1)
        self.board.add_image("samples", (picture + 1) / 2, state.step, dataformats="HW")
        # What measuring takes is not the training's.
        self.clock, self.counted = time.perf_counter(), state.step

    def save(self, state: TrainState) -> None:
        path = self.config.out / f"checkpoint-{state.step:08d}.safetensors"
        tensors = state.tensors() | checkpoint.prefixed("schedule", self.schedule.tables())
        checkpoint.save(path, tensors, self.about | {"step": state.step})
        for old in sorted(self.config.out.glob("checkpoint-*.safetensors"))[:-2]:
            old.unlink(missing_ok=True)
        self.clock, self.counted = time.perf_counter(), state.step

    def write(self, step: int, values: dict[str, Any]) -> None:
        print(json.dumps({"step": step} | values), file=self.log, flush=True)

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, whichever fails
            stack.callback(os.close, self.lock)
            stack.callback(self.log.close)
            stack.callback(self.board.close)
            stack.callback(_tell, self.bar.close)


def _tell(show: Callable[..., Any], *text: Any) -> None:
    """Show progress. The terminal may be gone, as a pipe is whose reader the same Ctrl-C ended;
    the run must not go with it."""
    with suppress(OSError):
        show(*text)


def _locked(folder: Path) -> int:
    """A lock on the folder, which ends with this process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(error.errno, "another run is under way here", str(folder)) from error
    return handle


def _table(step: int, errors: dict[str, Tensor]) -> str:
    """The squared error of x̂₀ at each noise level, between what anyone could guess and what
    nobody could beat: a network that learns is below the first and above the second."""
    rows = {"network": "data", "mean image": "data_trivial", "floor": "data_floor"}
    lines = [f"step {step}, error of x̂₀ on {SCORED} held-out images"]
    lines.append(f"{'t':>12}" + "".join(f"{t:9d}" for t in errors["t"].tolist()))
    for label, key in rows.items():
        lines.append(f"{label:>12}" + "".join(f"{e:9.4f}" for e in errors[key].tolist()))
    return "\n".join(lines)


def _about(config: RunConfig, dataset: Dataset, model: UNet) -> dict[str, Any]:
    """What each checkpoint says of itself. Nothing in it depends on where the run lies."""
    settings = dataclasses.asdict(config)
    for name in ("out", "root", "device"):
        del settings[name]
    images = dataset.images.cpu().numpy()
    return {
        "run": json.loads(json.dumps(settings)),
        "unet": model.settings,
        "target": config.training.target,
        "device": dataset.images.device.type,
        "dataset": {
            "name": dataset.name,
            "images": len(dataset),
            "shape": list(dataset.shape),
            "sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        },
    }


def _resume(folder: Path, about: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors of the latest checkpoint in `folder`, or None if there is none."""
    path = latest(folder)
    if path is None:
        return None
    try:
        tensors, found = checkpoint.load(path)
    except CheckpointError as error:
        before = sorted(folder.glob("checkpoint-*.safetensors"))[:-1]
        hint = f"delete it to go on from {before[-1].name}" if before else "there is none before it"
        raise CheckpointError(f"{error}; {hint}") from error
    if "run" not in found or "dataset" not in found:
        raise CheckpointError(f"{path} is no checkpoint of a run: choose another folder")
    if found["dataset"] != about["dataset"]:
        raise ValueError(
            f"{folder} holds a run on other images: {found['dataset']}, now {about['dataset']}"
        )
    device = found.get("device", about["device"])
    if device != about["device"]:
        raise ValueError(
            f"{folder} holds a run on {device}, whose random numbers {about['device']} cannot go "
            f"on with: give --device {device}, or choose another folder"
        )
    was, now = _flat(found["run"]), _flat(about["run"])
    changed = [name for name in now if name not in FREE and was.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: "
            + ", ".join(f"{name} was {was.get(name)}, now {now[name]}" for name in changed)
            + ". Give the same ones to go on with it, or choose another folder"
        )
    return tensors


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k != "training"} | settings["training"]


def _reopened(path: Path, start: int):
    """The log, open to be added to, without the lines of steps that are about to be repeated."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except ValueError:  # the line under way when the process was killed
            break
    checkpoint.write_atomically(path, "".join(kept).encode())
    return open(path, "a", encoding="utf-8")


def _load(config: RunConfig, device: torch.device) -> tuple[Dataset, Dataset]:
    """Images to train on, images held out. Where they are to be fetched, one process a machine
    does, before the others look."""
    last = distributed.is_initialized() and int(os.environ["LOCAL_RANK"]) > 0
    if last:
        distributed.barrier()
    both = [
        load(config.data, train=part, root=config.root, device=device) for part in (True, False)
    ]
    if distributed.is_initialized() and not last:
        distributed.barrier()
    return both[0], both[1]


def _agree(start: int, folder: Path) -> None:
    """Raise ValueError unless all processes start from the same step."""
    if not distributed.is_initialized():
        return
    starts = [None] * distributed.get_world_size()
    distributed.all_gather_object(starts, start)
    if len(set(starts)) > 1:
        raise ValueError(
            f"the processes find different checkpoints in {folder}, of steps {starts}: "
            "the folder must be one that all of them see"
        )


def _is_asked(asked: list[int], step: int, device: torch.device) -> bool:
    """Whether to stop at this step, the same in all processes."""
    if not distributed.is_initialized():
        return bool(asked)
    if not may_read(step, device):
        return False
    flag = torch.tensor(float(bool(asked)), device=device)
    distributed.all_reduce(flag)
    return bool(flag)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once, as ever."""
    asked = []

    def note(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        _tell(tqdm.write, "stopping, with a checkpoint; Ctrl-C again: at once, without")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _processes(device: str) -> Iterator[tuple[torch.device, int]]:
    """The device of this process and its rank; with torchrun, joined with the others."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield torch.device(pick_device(device)), 0
        return
    if device == "auto":  # gloo does not know Apple's GPUs
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    yield where, distributed.get_rank()
    # Not after an error: it would wait for processes that wait for this one.
    distributed.destroy_process_group()


def seconds(log: Path) -> float:
    """Seconds that the steps of a run took, all its starts together, without what it measured and
    saved: from the rates in its log. log: its metrics.jsonl."""
    total, before, batch = 0.0, 0, None
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if "started" in line:
            batch = line["started"]["run"]["training"]["batch_size"]
        elif "images_per_second" in line:
            total += (line["step"] - before) * batch / line["images_per_second"]
            before = line["step"]
    return total


def provenance(device: torch.device | str = "cpu") -> dict:
    """What a result must say of how it came to be: command, commit, device, threads, versions."""
    here = Path(__file__).resolve().parents[1]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = None
    if (here / ".git").exists() and shutil.which("git"):
        git = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    # In a notebook the arguments are those of its kernel.
    from_shell = Path(sys.argv[0]).parent.name == "diffusion_lib"
    command = shlex.join(["python", "-m", "diffusion_lib", *sys.argv[1:]]) if from_shell else None
    return {
        "command": command,
        "commit": commit,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": checkpoint.versions(),
    }


def device_name(device: torch.device | str) -> str:
    """What the machine calls its processor or accelerator."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [
            line.split(":")[1].strip()
            for line in cpus.read_text().splitlines()
            if line.startswith("model name")
        ]
        return f"{len(names)} × {names[0]}" if names else platform.machine()
    return platform.processor() or platform.machine()


def pick_device(name: str) -> str:
    """What "auto" stands for here; any other name is returned as it is."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
