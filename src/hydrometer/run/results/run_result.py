"""What `run` returns, and what opens a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydrometer.report.finished import Results
from hydrometer.run.graph.outcome import Outcome
from hydrometer.store.records import load_results
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["RunResult", "load_run"]


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(Results):
    """A run: what `run` and `load_run` return.

    Attributes
    ----------
    folder : where everything is: a path, or a URL.
    results : the content of results.json.
    outcome : stages computed, reused, failed; of an opened run none.
    """

    outcome: Outcome


def load_run(folder: str | Path | Url) -> RunResult:
    """Open a run's folder or URL, also while the run goes on.

    Raises
    ------
    FolderError : no results there, or those of a newer release.
    """
    return RunResult(place_of(folder), load_results(folder), Outcome())
