"""Figures that a user brought: what a run's folder keeps of them, cell by cell."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import FolderError, InputError, brief
from hydrometer.core.io.files import write_atomic
from hydrometer.core.io.locking import hold
from hydrometer.core.io.yaml_io import read_json
from hydrometer.core.statistics.estimate import Estimate

if TYPE_CHECKING:
    from hydrometer.store.records import RunFolder

__all__ = ["CellScores", "keep_scores", "read_scores"]

MAX_SCORES_BYTES = 100_000_000
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,119}")


@dataclass(slots=True)
class CellScores:
    """One cell's figures from elsewhere.

    Attributes
    ----------
    rows : by metric, the key of the evaluation rows it was computed on; None for a benchmark's, which has its own.
    metrics : by name.
    source : by metric, name and hash of the file it came from.
    """

    rows: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    metrics: dict[str, Estimate] = field(default_factory=dict[str, Estimate])
    source: dict[str, str] = field(default_factory=dict[str, str])

    def figures(self, rows: str) -> dict[str, Estimate]:
        """Return the figures; one whose rows were drawn anew since is undefined, for it is no figure of these."""
        return {
            name: e if self.rows[name] in (None, rows) else Estimate(None, None, None, 0, 0, e.method, e.unit)
            for name, e in self.metrics.items()
        }

    def joined(self, new: CellScores) -> CellScores:
        """Return both, the new ones in place of old ones of the same name."""
        return CellScores(self.rows | new.rows, self.metrics | new.metrics, self.source | new.source)


def read_scores(folder: RunFolder) -> dict[str, CellScores]:
    """Read what the folder holds, by cell id. Raises FolderError: a file that cannot be read."""
    out: dict[str, CellScores] = {}
    for path in sorted((folder.root / "scores").glob("*.json")):
        try:
            body: dict[str, Any] = read_json(path, MAX_SCORES_BYTES)
            made = CellScores()
            metrics: dict[str, dict[str, Any]] = body["metrics"]
            for name, item in metrics.items():
                if not _NAME.fullmatch(name):
                    raise ValueError(f"{brief(name)} cannot name a metric")
                made.metrics[name] = _figure(item["figure"])
                made.rows[name], made.source[name] = item["rows"], str(item["source"])
            out[str(body["cell"])] = made
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            fix = "remove it and bring the scores again"
            raise FolderError(f"scores/{path.name} cannot be read: {e}", fix=fix) from None
    return out


def _same_kind(old: CellScores, new: CellScores) -> None:
    """Refuse a column of scores under the name of a log-probability's figure, and the reverse. Raises InputError."""
    for name in old.metrics.keys() & new.metrics.keys():
        if old.metrics[name].unit.startswith("nats") != new.metrics[name].unit.startswith("nats"):
            fix = "rename the column, or give --truth another name"
            raise InputError("a column of scores and a figure of --truth have one name", got=name, fix=fix)


def _figure(value: dict[str, Any]) -> Estimate:
    """Make a figure of what a file says. Raises ValueError, TypeError, KeyError."""
    for key in ("value", "se", "se_mc", "df"):
        v: object = value.get(key)
        if v is not None and (isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) < math.inf):
            raise ValueError(f"{key} is {brief(v)}")
    if not all(type(value[key]) is int and 0 <= value[key] < 2**53 for key in ("n", "n_neg_inf")):
        raise ValueError("n is no count")
    if not isinstance(value["unit"], str) or value["method"] not in ("mc", "cv", "exact", "canonical"):
        raise ValueError("method or unit is none")
    return Estimate(**value)


def keep_scores(folder: RunFolder, new: Mapping[str, CellScores]) -> None:
    """Add figures to what the folder holds. Raises FolderError where another process is adding some, InputError."""
    home = folder.root / "scores"
    home.mkdir(exist_ok=True)
    with hold(home) if isinstance(folder.place, Path) else nullcontext():
        old = read_scores(folder)
        for cell, scores in new.items():
            _same_kind(old.get(cell, CellScores()), scores)
        for cell, scores in new.items():
            whole = old.get(cell, CellScores()).joined(scores)
            metrics = {
                name: {"rows": whole.rows[name], "source": whole.source[name], "figure": asdict(e)}
                for name, e in whole.metrics.items()
            }
            text = json.dumps({"version": 1, "cell": cell, "metrics": metrics}, indent=1, allow_nan=False) + "\n"
            write_atomic(home / f"{cell}.json", text)
