"""Checkpoints of a fit, from which a killed fit resumes.

The Trainer writes model, optimizer, schedule, generators and position; we add the held-out history and the best epoch's
weights, and last `whole.json` with every file's checksum. A checkpoint without it, or that contradicts it, is
discarded. Older checkpoints are removed after that. Weights are safetensors; files of torch are read with
`weights_only`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydrometer.core.io.files import file_digest, write_atomic

__all__ = ["Checkpoints", "Remembers"]

WHOLE, HISTORY, BEST = "whole.json", "history.json", "best.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


class Remembers(Protocol):
    """State of a fit besides the Trainer's: history and the best epoch's weights."""

    def remembered(self) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Return JSON-able history, and the weights."""
        ...

    def remember(self, history: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Restore both."""
        ...


class Checkpoints(TrainerCallback):
    """Finds the newest whole checkpoint of a fit, and completes those that the Trainer writes.

    Parameters
    ----------
    folder : of this fit's checkpoints.
    barrier : waits for all processes of the fit; None for one process.
    writes : whether this process completes and removes checkpoints.

    Attributes
    ----------
    discarded : why checkpoints could not be used.
    """

    def __init__(self, folder: Path, fit: Remembers, barrier: Callable[[], None] | None, *, writes: bool) -> None:
        self.folder, self.fit, self.barrier, self.writes = folder, fit, barrier, writes
        self.discarded: list[str] = []

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint; remove the others, and note damaged ones in `discarded`."""
        found = sorted(self._all(), reverse=True)
        chosen: Path | None = None
        for step, path in found:
            wrong = _damage(path) if chosen is None else "an older one"
            if wrong is None:
                chosen = path
                continue
            if chosen is None:
                self.discarded.append(f"the checkpoint at step {step} was discarded: {wrong}")
            shutil.rmtree(path, ignore_errors=True)
        return chosen

    def open(self, path: Path) -> None:
        """Restore the fit's state from a whole checkpoint."""
        history = json.loads((path / HISTORY).read_text("utf-8"))
        best = load_file(path / BEST) if (path / BEST).is_file() else None
        self.fit.remember(history, best)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the Trainer's checkpoint, then remove older ones."""
        if self.barrier is not None:
            self.barrier()
        if not self.writes:
            return
        path = self.folder / f"checkpoint-{state.global_step}"
        history, best = self.fit.remembered()
        (path / HISTORY).write_text(json.dumps(history), encoding="utf-8")
        if best is not None:
            save_file(best, path / BEST)
        files = {p.name: _facts(p) for p in sorted(path.iterdir()) if p.name != WHOLE}
        write_atomic(path / WHOLE, json.dumps(files))
        for step, other in self._all():
            if step != state.global_step:
                shutil.rmtree(other, ignore_errors=True)

    def _all(self) -> list[tuple[int, Path]]:
        found = self.folder.glob("checkpoint-*") if self.folder.is_dir() else ()
        return [(int(m[1]), p) for p in found if (m := _NAME.fullmatch(p.name))]


def _facts(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        files: object = json.loads((path / WHOLE).read_bytes())
    except (OSError, ValueError):
        return "it was not finished"
    if not isinstance(files, dict) or HISTORY not in files:
        return "it was not finished"
    for name, facts in files.items():
        try:
            if "/" in name or _facts(path / name) != facts:
                return f"{name} is damaged"
        except OSError:
            return f"{name} is missing"
    return None
