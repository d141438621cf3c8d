"""The API for writing a family; see docs, Add your own family.

`Family` and `Law` are the contract. `CheapFamily`, `CheapChain` and `Density` answer most of it for laws whose rows are
cheap to draw; `hydrometer.testing` holds a family to its promises.
"""

from hydrometer.core.errors import DataError, FitError, InputError, LawMismatchError, MissingDependencyError, StoreError
from hydrometer.core.findings import Finding, note, warning
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.spec import ChainSpec, Resample, Selectivity, Strict
from hydrometer.models.array_files import load_arrays, save_arrays
from hydrometer.models.base import (
    Family,
    FitRequest,
    Fitted,
    Footprint,
    Law,
    Level,
    Precision,
    Samples,
    ScoreKind,
    chain_levels,
)
from hydrometer.models.cheap import EVERYTHING, CheapChain, CheapFamily, Density, Floats, RowCounts, Stage, points_of
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences

__all__ = [
    "EVERYTHING",
    "ChainSpec",
    "CheapChain",
    "CheapFamily",
    "DataError",
    "Density",
    "Family",
    "Finding",
    "FitError",
    "FitRequest",
    "Fitted",
    "Floats",
    "Footprint",
    "InputError",
    "Law",
    "LawMismatchError",
    "Level",
    "MissingDependencyError",
    "Points",
    "Precision",
    "Resample",
    "RowCounts",
    "Samples",
    "ScoreKind",
    "Selectivity",
    "Sequences",
    "Stage",
    "StoreError",
    "Stream",
    "Strict",
    "as_stream",
    "chain_levels",
    "load_arrays",
    "note",
    "open_arrays",
    "points_of",
    "save_arrays",
    "warning",
]
