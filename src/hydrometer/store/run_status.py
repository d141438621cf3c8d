"""How far a run is: progress.json in its folder, which the run renews and anybody may read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hydrometer.core.errors import FolderError
from hydrometer.core.io.yaml_io import read_plain
from hydrometer.store.mirror import read_object
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["PROGRESS", "SILENT", "RunStatus", "read_status"]

PROGRESS = "progress.json"
SILENT = 60.0  # seconds after which a run that says nothing is taken to have died
_MAX_BYTES = 100_000


class RunStatus(BaseModel):
    """What a run says of itself (docs, Schema).

    Attributes
    ----------
    state : "stopped" of a run that was interrupted or met an error.
    stages, done, failed : to be made when it began; of these ended; of these failed.
    share : done of the stages' cost, from 0 to 1.
    left : seconds to go at the rate so far; None while that is unknown.
    doing : what is under way, for people.
    began, written : seconds since 1970, by the clock of the run's machine.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    state: Literal["running", "done", "stopped"]
    stages: int = Field(ge=0)
    done: int = Field(ge=0)
    failed: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    left: float | None = Field(ge=0)
    doing: str
    began: float = Field(ge=0, le=1e11)
    written: float = Field(ge=0, le=1e11)

    def is_silent(self, now: float) -> bool:
        """Whether it says that it goes on, but has said nothing for too long: it has died."""
        return self.state == "running" and now - self.written > SILENT

    def goes_on(self, now: float) -> bool:
        """Whether it goes on, at that time."""
        return self.state == "running" and not self.is_silent(now)


def read_status(folder: Path | str | Url) -> RunStatus | None:
    """Read how far a run is, from a folder or a URL; None where its folder does not say.

    Raises
    ------
    FolderError : its progress.json cannot be read.
    """
    place = place_of(folder) / PROGRESS
    try:
        raw = read_plain(place, _MAX_BYTES) if isinstance(place, Path) else read_object(place, _MAX_BYTES)
        return RunStatus.model_validate(json.loads(raw[: _MAX_BYTES + 1]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise FolderError(f"{PROGRESS} cannot be read: {e}", got=str(folder), fix="remove it, or run again") from None
