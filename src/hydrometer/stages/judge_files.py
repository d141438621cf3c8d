"""Files of a judged cell's artifact: its figures, and the rows that paired comparisons and exhibits need."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import StoreError
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.likelihood import Scores

__all__ = [
    "ROWS_FILE",
    "kept_rows",
    "load_adjusted",
    "load_law_on_truth",
    "load_metrics",
    "load_text_on_truth",
    "load_truth_on_law",
    "write_chosen",
    "write_metrics",
    "write_rows",
]

METRICS_FILE, ROWS_FILE = "metrics.json", "rows.npz"
SHOWN_ROWS = 16  # rows of a law that an exhibit may show with their log-probability under the truth


def write_rows(s: Scores, most: int, folder: Path) -> None:
    """Write what `kept_rows` keeps."""
    np.savez(folder / ROWS_FILE, **kept_rows(s, most))


def kept_rows(s: Scores, most: int) -> dict[str, Any]:
    """Return what comparisons need of the first `most` rows of the truth, and of the law's what is shown."""
    kept = s.law_on_truth[:most]
    columns: dict[str, Any] = {"law_on_truth": kept, "truth_on_law": s.truth_on_law[:SHOWN_ROWS]}
    return columns | _adjusted(s, len(kept))


def write_chosen(metrics: dict[str, Estimate], on_truth: Floats, folder: Path) -> None:
    """Write the figures of what chooses among candidates, and its rows' log p*, (M,)."""
    write_metrics(metrics, folder)
    np.savez(folder / ROWS_FILE, truth_on_law=on_truth[:SHOWN_ROWS])


def _adjusted(s: Scores, n: int) -> dict[str, Any]:
    """Rows of the truth as the cell's figures hold them, where they are adjusted by control variates."""
    controls = s.truth_controls
    if controls is None or not np.isfinite(s.law_on_truth).all():
        return {}
    out: dict[str, Any] = {
        "adjusted_law": controls.adjust(s.law_on_truth, (0.0, 1.0))[:n],
        "adjusted_truth": controls.adjust(s.truth_on_truth, (1.0, 0.0))[:n],
    }
    lengths = s.truth_rows.lengths
    return out if lengths is None else out | {"adjusted_lengths": controls.adjust(lengths.astype(np.float64))[:n]}


def write_metrics(metrics: dict[str, Estimate], folder: Path) -> None:
    """Write the figures that `load_metrics` reads."""
    (folder / METRICS_FILE).write_text(json.dumps({k: asdict(v) for k, v in metrics.items()}))


def load_metrics(folder: Path) -> dict[str, Estimate]:
    """Read what `judge` wrote. Raises StoreError where it holds something else."""
    found: dict[str, Any] = artifact_json(folder / METRICS_FILE, dict)
    try:
        return {k: _estimate(v) for k, v in found.items()}
    except (TypeError, ValueError) as e:
        fix = "delete its folder, then run again"
        raise StoreError(f"metrics.json cannot be read: {e}", got=folder.name, fix=fix) from None


def _estimate(value: dict[str, Any]) -> Estimate:
    e = Estimate(**value)
    numbers: list[object] = [e.value, e.se, e.se_mc, e.df]
    counts: list[object] = [e.n, e.n_neg_inf]
    words: list[object] = [e.method, e.unit]
    if not all(type(x) in (int, float, type(None)) for x in numbers):
        raise ValueError("a figure is no number")
    if not all(type(x) is int for x in counts) or not all(isinstance(x, str) for x in words):
        raise ValueError("a figure lacks its count, method or unit")
    return e


def load_law_on_truth(folder: Path) -> Floats:
    """Read log q of the truth's rows, (N,) or the first `judge.KEPT_ROWS` of a cheap family's."""
    with open_arrays(folder / ROWS_FILE) as archive:
        return _column(archive, "law_on_truth", folder)


def load_truth_on_law(folder: Path) -> Floats:
    """Read log p* of the law's first rows, for an exhibit."""
    with open_arrays(folder / ROWS_FILE) as archive:
        return archive["truth_on_law"]


def load_adjusted(folder: Path) -> tuple[Floats, Floats, Floats | None] | None:
    """Read log q, log p* and lengths of the truth's rows as control variates adjusted them for this cell, or None."""
    with open_arrays(folder / ROWS_FILE) as archive:
        if "adjusted_law" not in archive:
            return None
        lengths = _column(archive, "adjusted_lengths", folder) if "adjusted_lengths" in archive else None
        return _column(archive, "adjusted_law", folder), _column(archive, "adjusted_truth", folder), lengths


def load_text_on_truth(folder: Path) -> tuple[Floats, Floats] | None:
    """Read log q of the truth's rows as texts, and their bytes; None where they were not scored so."""
    with open_arrays(folder / ROWS_FILE) as archive:
        if "text_on_truth" not in archive:
            return None
        return _column(archive, "text_on_truth", folder), _column(archive, "bytes", folder)


def _column(archive: Any, name: str, folder: Path) -> Floats:
    found: Floats = archive[name]
    if found.ndim != 1 or found.dtype != np.float64:
        what = f"rows.npz cannot be read: {name} is no column"
        raise StoreError(what, got=folder.name, fix="delete its folder, then run again")
    return found
