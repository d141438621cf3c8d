"""Scores of drawn rows: what best of n ranks by, and what rejection looks at.

Built-in scores come with the rows or from a law; others are functions that installed packages announce in the
entry-point group ``hydrometer.metrics``, each called as ``f(prompts, answers, ids)`` and returning a number a row.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError, SpecError, StageError
from hydrometer.core.io.yaml_io import nearest
from hydrometer.models.base import Law
from hydrometer.models.rows.sequences import Sequences

__all__ = ["BUILT_IN", "GROUP", "RowScore", "Scorer", "Texts", "check_score", "score_identity", "scorer"]

GROUP = "hydrometer.metrics"
BUILT_IN = ("log_prob", "log_prob_per_token", "log_prob_unselected", "length", "stopped", "truth_log_prob")

Scorer = Callable[[Sequences], Floats]
Texts = Callable[[Sequences], tuple[list[str], list[str]]]
"""From rows to their prompts and answers as text."""


class RowScore(Protocol):
    """What an entry point of the group ``hydrometer.metrics`` names.

    Examples
    --------
    >>> def words(prompts, answers, ids):
    ...     return [len(a.split()) for a in answers]
    """

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], ids: Sequence[Sequence[int]], /) -> ArrayLike:
        """Score N rows: (N,) finite or infinite numbers, the higher the better."""
        ...


@cache
def _installed() -> dict[str, EntryPoint]:
    return {p.name: p for p in entry_points(group=GROUP) if p.name not in BUILT_IN}


@cache
def _load(name: str) -> RowScore:
    try:
        found = _installed()[name].load()
    except Exception as e:
        raise SpecError(f"the score {name!r} cannot be imported: {type(e).__name__}: {e}", fix="mend it") from None
    if not callable(found):
        raise SpecError(f"the score {name!r} is no function", got=type(found).__name__, fix="mend its entry point")
    return cast("RowScore", found)


def check_score(name: str) -> None:
    """Refuse a score that is neither built in nor installed. Raises SpecError.

    Examples
    --------
    >>> check_score("length")
    """
    if name in BUILT_IN:
        return
    if name not in _installed():
        fix = nearest(name, [*BUILT_IN, *_installed()]) + f"; others come from the entry-point group {GROUP}"
        raise SpecError("unknown score of rows", got=name, fix=fix)
    _load(name)


def score_identity(name: str) -> dict[str, str] | None:
    """Return what a score's values depend on besides the rows, for keys: nothing for a built-in one.

    Of an installed one, its package's version and the content of the file that defines it.
    """
    if name in BUILT_IN:
        return None
    check_score(name)
    point, function = _installed()[name], _load(name)
    target = function if inspect.isroutine(function) else type(function)
    try:
        source = hashlib.sha256(Path(inspect.getfile(target)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        source = ""  # compiled: its package's version has to do
    return {"value": point.value, "version": "" if point.dist is None else point.dist.version, "source": source}


def scorer(name: str, *, unselected: Law, truth: Law | None, texts: Texts | None) -> Scorer:
    """Return the function from rows to scores, (N,) float64.

    Parameters
    ----------
    name : of a score; a leading minus sign turns it round.
    unselected : the candidates' law without its selectivity.
    truth : p*, which `truth_log_prob` needs.
    texts : from rows to texts, which installed scores need.

    Raises
    ------
    SpecError : an unknown score. InputError : it needs what was not given.
    """
    if name.startswith("-"):
        inner = scorer(name[1:], unselected=unselected, truth=truth, texts=texts)
        return lambda x: -inner(x)
    check_score(name)
    match name:
        case "log_prob":
            return lambda x: x.log_prob
        case "log_prob_per_token":
            return lambda x: x.log_prob / x.lengths
        case "log_prob_unselected":
            return lambda x: _unselected(x, unselected)
        case "length":
            return lambda x: x.lengths.astype(np.float64)
        case "stopped":
            return lambda x: x.stopped.astype(np.float64)
        case "truth_log_prob":
            if truth is None:
                raise InputError("truth_log_prob needs the truth", fix="give truth=")
            return truth.log_prob
        case _:
            if texts is None:
                raise InputError(f"the score {name!r} needs the rows' texts", fix="give texts=")
            return _own(name, _load(name), texts)


def _unselected(x: Sequences, law: Law) -> Floats:
    recorded = x.token_log_prob_unselected
    return law.log_prob(x) if recorded is None else recorded.sum(axis=1, dtype=np.float64)


def _own(name: str, function: RowScore, texts: Texts) -> Scorer:
    def score(x: Sequences) -> Floats:
        prompts, answers = texts(x)
        try:
            found = np.asarray(function(prompts, answers, [x.row(i).tolist() for i in range(len(x))]), np.float64)
        except Exception as e:
            raise StageError(f"the score {name!r} failed: {type(e).__name__}: {e}") from None
        if found.shape != (len(x),) or np.isnan(found).any():
            got = "NaN" if found.shape == (len(x),) else found.shape
            raise StageError(f"the score {name!r} must give {len(x)} numbers, one a row", got=got)
        return found

    return score
