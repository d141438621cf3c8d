"""Embed and picture: judged rows in the truth's embedding space, and a chain's picture of them in the plane."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import StageError, one_line
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.metrics.embeddings import mixing, spread, spread_ratio
from hydrometer.metrics.projection import project
from hydrometer.models.capabilities import Embeds
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import EmbedNode, PictureNode

__all__ = ["PICTURE_ROWS", "embed", "load_picture", "picture", "without_picture"]

PICTURE_ROWS = 256  # of each model; no more than there are evaluation rows
WORDS = 80  # characters of a row's text that a picture keeps
KIND = {"kind": "picture", "version": 1}


def embed(node: EmbedNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Write the first rows of one judged law in the truth's embedding space, and their first words.

    Raises
    ------
    StageError : the truth's model has no such space, or its states are not finite.
    """
    family, context = node.context.family, node.context
    truth = bench.law(context, node.truth, family.precision(context.spec, "judge"))
    if not isinstance(truth, Embeds):
        raise StageError("no picture: this family's models do not embed", got=family.name, fix="leave picture out")
    rows = family.take(bench.head(context, node.rows, node.n), node.n)
    found = truth.embed(rows)
    if not np.isfinite(found).all():
        raise StageError("no picture: the truth's hidden states hold NaN or infinity", fix="set judge_dtype: float32")
    labels = rows.strata.labels if isinstance(rows.strata, Clusters) else rows.strata
    strata = np.zeros(len(rows), np.int64) if labels is None else labels
    np.savez(folder / "embedding.npz", embedding=found, strata=strata)
    (folder / "words.json").write_text(json.dumps([one_line(t, WORDS) for t in truth.texts(rows)[1]]))
    return {"rows": len(rows), "dimensions": int(found.shape[1])}


def picture(node: PictureNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Write a chain's picture: all models' rows in one plane, and each model's figures against the truth.

    The first model is the truth.
    """
    folders = [bench.store.path("embed", key) for _, key in node.models]
    loaded = [_load(f) for f in folders]
    truth, strata = loaded[0]
    if any(not np.array_equal(s, strata) for _, s in loaded):
        raise StageError("the models' rows answer other prompts, or in another order")
    seed = Stream(0, ("shared",)).child("picture").integer()
    plane = project(np.concatenate([e for e, _ in loaded]), node.method, seed=seed)
    if not np.isfinite(plane.xy).all():
        raise StageError(f"{node.method} gave no finite coordinates", fix="set picture: pca")
    by_model = plane.xy.reshape(len(loaded), len(truth), 2)
    models: list[dict[str, object]] = []
    for i, (cell, _) in enumerate(node.models):
        rows = loaded[i][0]
        compared = {
            "spread_ratio": asdict(spread_ratio(rows, truth, strata)),
            "mixing": asdict(mixing(rows, truth, strata)),
        }
        model: dict[str, object] = {
            "cell": cell,
            "x": _short(by_model[i, :, 0]),
            "y": _short(by_model[i, :, 1]),
            "words": artifact_json(folders[i] / "words.json", list),
            "spread": asdict(spread(rows, strata)),
        }
        models.append(model | (compared if i else {}))
    counts = np.unique(strata, return_counts=True)[1]
    body = {
        **KIND,
        "status": "ok",
        "method": node.method,
        "rows": len(truth),
        "dimensions": int(truth.shape[1]),
        "prompts": len(counts),
        "within_prompts": bool(counts.min() >= 2 and len(counts) > 1),
        "explained": plane.explained,
        "models": models,
    }
    (folder / "picture.json").write_text(json.dumps(body))
    return {"models": len(models)}


def load_picture(folder: Path) -> dict[str, object]:
    """Read what `picture` wrote."""
    return artifact_json(folder / "picture.json", dict)


def without_picture(reason: str) -> dict[str, object]:
    """Return the exhibit of a picture that failed, so that none of an earlier run is shown in its place."""
    return {**KIND, "status": "failed", "reason": reason}


def _load(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with open_arrays(folder / "embedding.npz") as archive:
        return archive["embedding"], archive["strata"]


def _short(values: NDArray[np.float64]) -> list[float]:
    """Five significant digits: what a picture can show."""
    return [float(f"{v:.5g}") for v in values]
