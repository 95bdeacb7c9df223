"""The environment in which the peers are installed, made where it is missing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-peers"
REQUIREMENTS = ROOT / "benchmarks" / "requirements.txt"
UV = "uv==0.13.9"  # as in the Makefile


def enter(module: str, arguments: list[str]) -> None:
    """Go on as `python -m module arguments` in the environment of the peers, from the
    repository; return if this is it already and it is up to date."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = FOLDER / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        make()
        stamp.write_text(wanted)
    if Path(sys.prefix).resolve() == FOLDER and Path.cwd() == ROOT:
        return
    python = str(FOLDER / "bin" / "python")
    os.chdir(ROOT)
    os.execv(python, [python, "-m", module, *arguments])


def make() -> None:
    """Install the peers, and this library in place, in `.venv-peers`."""
    print(f"Installing the peers in {FOLDER} (about 6 GB with torch's GPU libraries)", flush=True)
    python = FOLDER / "bin" / "python"
    commands = [
        [python, "-m", "pip", "install", "--quiet", UV],
        [FOLDER / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
        + ["--requirements", REQUIREMENTS, "--editable", ROOT],
    ]
    if not python.exists():
        commands.insert(0, [sys.executable, "-m", "venv", FOLDER])
    for command in commands:
        subprocess.run(list(map(str, command)), check=True)


def write_atomically(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a reader finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
