"""A finished run of tiny language models, and checkpoints that could have been trained elsewhere."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class World:
    """A truth, checkpoints that could have been trained elsewhere, and a finished run with two prompts."""

    source: Path
    checkpoints: dict[str, Path]
    run: Path

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.run, folder / "run")
        return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, by name."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }
