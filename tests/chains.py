"""Tiny chains for tests of whole runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

MIXTURE: dict[str, Any] = {
    "family": "mixture",
    "truth": {"means": [[-1, 0], [1, 0], [0, 1.5]], "covariances": 0.05, "weights": [0.5, 0.3, 0.2]},
    "teacher": {"n_components": 2},
    "student": {"n_components": 1},
    "data": {"train": 60, "distill": 80, "evaluate": 200},
    "selectivity": [{"weight_power": 1}, {"weight_power": 20}],
}


def mixture_spec(seeds: int = 2, **changes: Any) -> dict[str, Any]:
    return {"name": "tiny", "seeds": seeds, "chains": {"m": copy.deepcopy(MIXTURE) | changes}}


def lm_chain(source: Path | str, **changes: Any) -> dict[str, Any]:
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.003, "bf16": False}
    chain: dict[str, Any] = {
        "family": "causal_lm",
        "truth": {"source": str(source), "max_new_tokens": 6, "prompts": None},
        "teacher": {"init": {"layers_of": "truth", "layers": [0, 2]}, "training": training},
        "student": {"init": {"layers_of": "above", "layers": [0]}, "training": training},
        "data": {"train": 32, "validate": 16, "distill": 32, "evaluate": 48},
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.6}],
        "block_rows": 16,
        "threads": 1,
        "draw_dtype": "float32",
    }
    return chain | changes


def lm_spec(source: Path | str, seeds: int = 1, **changes: Any) -> dict[str, Any]:
    return {"name": "tiny-lm", "seeds": seeds, "chains": {"lm": lm_chain(source, **changes)}}


def write_spec(spec: dict[str, Any], folder: Path, name: str = "spec.yaml") -> Path:
    """YAML is a superset of JSON."""
    path = folder / name
    path.write_text(json.dumps(spec))
    return path


def without_timings(results: dict[str, Any]) -> str:
    kept = copy.deepcopy(results)
    for cell in kept["cells"]:
        del cell["seconds"]
        cell.get("fit", {}).pop("seconds", None)
    return json.dumps(kept, indent=1)


def without_names(results: dict[str, Any]) -> str:
    """Without timings and the artifacts' names, which hold the versions of their stages."""
    return without_timings({**results, "cells": [{**c, "artifacts": {}} for c in results["cells"]]})


def complaints(err: str) -> list[str]:
    """Lines on standard error that say what is wrong; progress begins with a clock, a figure with judged."""
    return [line for line in err.splitlines() if not line.startswith(("[", "judged "))]
