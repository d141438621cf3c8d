"""Checks of the contract of families, to run against your own family.

    import pytest
    from hydrometer.testing import CHECKS
    from my_package.contract import case

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    def test_contract(check, tmp_path):
        check(case(), tmp_path)

Each check takes a `ContractCase` and an empty folder, returns nothing, and raises ContractError where a promise of
`models.base` is broken. The package's own tests run them over the built-in families and over every installed one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import HydrometerError
from hydrometer.core.findings import Finding
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.base import Family, FitRequest, Law, Samples
from hydrometer.models.families import missing_methods
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences

__all__ = ["CHECKS", "Check", "ContractCase", "ContractError", "installed_cases", "rows_of"]

Row = tuple[float, ...]


class ContractError(HydrometerError, AssertionError):
    """A family breaks a promise."""


def rows_of(samples: Samples) -> list[Row]:
    """Return rows as comparable tuples: of points their coordinates, of sequences the prompt's index and the ids."""
    if isinstance(samples, Sequences):
        return [(float(samples.prompt_index[i]), *samples.row(i).tolist()) for i in range(len(samples))]
    if isinstance(samples, Points):
        return [tuple(r) for r in samples.x.tolist()]
    raise ContractError("rows of this type cannot be compared", got=type(samples).__name__, fix="give the case `rows=`")


@dataclass(frozen=True, slots=True)
class ContractCase:
    """What the checks need to know about a family.

    Attributes
    ----------
    family : the object named by its entry point.
    law : an unselected law of it, such as a fit makes, and that its chain's student can be fitted to.
    neutral : a selectivity that changes nothing.
    cold : one that sharpens, under which no row of `law` is more than some hundred times as likely: normalisation is
        checked by importance sampling.
    chain : a valid chain.
    rows : rows as comparable tuples.
    """

    family: Family
    law: Law
    neutral: Selectivity
    cold: Selectivity
    chain: ChainSpec
    rows: Callable[[Samples], list[Row]] = rows_of


Check = Callable[[ContractCase, Path], None]


def _demand(holds: object, what: str, got: object = ...) -> None:
    if not holds:
        raise ContractError(what, got=got)


def _close(a: NDArray[np.float64], b: NDArray[np.float64], within: float, what: str) -> None:
    gap = float(np.abs(a - b).max())
    _demand(gap <= within, f"{what} differ by more than {within:g} nats", gap)


def check_the_family_is_whole(case: ContractCase, folder: Path) -> None:
    """The contract is complete, and parts of keys are JSON that does not change."""
    f, c = case.family, case.chain
    _demand(not missing_methods(f), "the family lacks methods", missing_methods(f))
    _demand(isinstance(c, f.chain_spec), "the chain is not of the family's chain_spec", type(c).__name__)
    _demand(c.family == f.name, "the chain's `family` is not the family's name", (c.family, f.name))
    again = f.chain_spec.model_validate(c.model_dump(mode="json", exclude_none=True))
    _demand(again == c, "a chain written out and read again is another chain", again)
    _demand({"train", "distill", "evaluate"} <= set(f.sizes(c)), "sizes lack a stream", dict(f.sizes(c)))
    roles = [level.role for level in f.levels(c)]
    _demand(roles and roles[-1] == "student", "the last level is not `student`", roles)
    _demand("teacher" not in roles[1:], "a teacher is not the first level", roles)
    _demand(f.block_rows(c) >= 1, "block_rows is below 1", f.block_rows(c))
    for role in roles:
        for stage in ("draw", "fit", "judge"):
            cost = f.cost(c, stage, role, 100)
            _demand(0 < cost < math.inf, f"cost of {stage} is not above 0 and finite", cost)


def check_an_examination_repeats_itself(case: ContractCase, folder: Path) -> None:
    """Equal chains give equal findings, JSON-able, without a chain's name; bytes are whole numbers, not below 0."""
    f, c = case.family, case.chain
    found = tuple(f.examine(c))
    _demand(found == tuple(f.examine(c)), "two examinations of one chain differ", [x.code for x in found])
    for finding in found:
        _demand(finding.chain is None, "a family does not know its chain's name; leave `chain` out", finding.chain)
        _demand(Finding.from_json(finding.to_json()) == finding, "a finding's text is not one line", finding)
    for level in f.levels(c):
        for stage in ("draw", "fit", "judge"):
            takes = f.footprint(c, stage, level.role, 100)
            n_bytes = (takes.disk_least, takes.disk_most, takes.memory_least)
            _demand(all(n >= 0 and n == int(n) for n in n_bytes), f"bytes of {stage} are no sizes", n_bytes)
            _demand(takes.disk_least <= takes.disk_most, f"{stage} takes more disk at least than at most", n_bytes)


def check_rows_do_not_depend_on_the_call(case: ContractCase, folder: Path) -> None:
    """``sample(n, start=a)`` equals rows a .. a+n of any larger draw of the stream; other streams give other rows."""
    for law in (case.law, case.law.select(case.cold)):
        whole = law.sample(150, seed=Stream(3, ("x",)))
        part = law.sample(70, seed=Stream(3, ("x",)), start=33)
        _demand(case.rows(whole)[33:103] == case.rows(part), "rows depend on the call that draws them")
        _demand((whole.log_prob[33:103] == part.log_prob).all(), "log_prob of rows depends on the call that draws them")
        other = law.sample(150, seed=Stream(4, ("x",)))
        _demand(case.rows(other) != case.rows(whole), "two streams give the same rows")


def check_recorded_log_prob_is_the_score(case: ContractCase, folder: Path) -> None:
    """Drawn rows have finite recorded log-probability, equal to `log_prob` to 1e-4, in float64."""
    for law in (case.law, case.law.select(case.cold)):
        x = law.sample(64, seed=1)
        scored = law.log_prob(x)
        _demand(np.isfinite(x.log_prob).all(), "a drawn row has no probability under its own law")
        _demand(scored.dtype == np.float64 and scored.shape == (64,), "log_prob is not (N,) float64", scored.dtype)
        _close(scored, x.log_prob, 1e-4, "recorded and scored log-probabilities")


def check_a_neutral_selectivity_changes_nothing(case: ContractCase, folder: Path) -> None:
    """`select` with a neutral selectivity is the same law."""
    x = case.law.sample(32, seed=2)
    _demand(case.neutral.is_neutral, "the case's neutral selectivity is not neutral", case.neutral.label)
    _close(case.law.select(case.neutral).log_prob(x), case.law.log_prob(x), 1e-9, "log-probabilities at neutral")


def check_a_cold_law_is_normalised_and_has_less_entropy(case: ContractCase, folder: Path) -> None:
    """E_p[q/p] = 1 on the support of q, within 5 standard errors; and H(q) < H(p), beyond 5."""
    n = 2000
    cold = case.law.select(case.cold)
    x, y = case.law.sample(n, seed=5), cold.sample(n, seed=6)
    ratio = np.exp(cold.log_prob(x) - case.law.log_prob(x))
    off = float(abs(ratio.mean() - 1) / (ratio.std() / math.sqrt(n)))
    _demand(off < 5, "a selected law is not normalised: E[q/p] is off 1, in standard errors, by more than 5", off)
    h_cold, h = -cold.log_prob(y), -case.law.log_prob(x)
    gap = float((h.mean() - h_cold.mean()) / (math.hypot(h_cold.std(), h.std()) / math.sqrt(n)))
    _demand(gap > 5, "a sharpened law has no less entropy; difference in standard errors", gap)


def check_laws_over_other_outcomes_are_refused(case: ContractCase, folder: Path) -> None:
    """`compatible` accepts the law itself and its selections, and refuses what is not a law."""
    case.law.compatible(case.law.select(case.cold))
    try:
        case.law.compatible(object())
    except HydrometerError:
        return
    raise ContractError("compatible takes what is no law", got=object)


def check_a_law_survives_its_folder(case: ContractCase, folder: Path) -> None:
    """`load_law` of `save_law` draws the same rows and gives the same bits."""
    case.family.save_law(case.law, folder)
    back = case.family.load_law(folder, case.chain, case.family.precision(case.chain, "judge"))
    x = case.law.sample(16, seed=8)
    _demand(case.rows(back.sample(16, seed=8)) == case.rows(x), "a law loaded draws other rows than the law saved")
    _demand((back.log_prob(x) == case.law.log_prob(x)).all(), "a law loaded scores otherwise than the law saved")


def check_rows_survive_their_folder(case: ContractCase, folder: Path) -> None:
    """Blocks of rows come back bit for bit, joined in order and cut to length; `take` is the beginning."""
    family, folders = case.family, [folder / "a", folder / "b"]
    for i, block in enumerate(folders):
        block.mkdir()
        family.save_samples(case.law.sample(8, seed=9, start=8 * i), block)
    x, whole = family.load_samples(folders, 13), case.law.sample(13, seed=9)
    _demand(case.rows(x) == case.rows(whole), "rows loaded are not the rows saved")
    _demand((x.log_prob == whole.log_prob).all(), "log_prob loaded is not the one saved")
    _demand(case.rows(family.take(whole, 5)) == case.rows(whole)[:5], "take is not the first rows")


def check_a_fit_depends_on_its_request_alone(case: ContractCase, folder: Path) -> None:
    """Equal requests give equal bits; what is fitted is a law over the same outcomes, without NaN."""
    family, chain = case.family, case.chain
    data, held_out = (case.law.sample(family.sizes(chain)["train"], seed=s) for s in (10, 11))
    level = family.levels(chain)[-1].spec
    request = FitRequest(data, held_out, case.law, None, level, "truth", "mle", Stream(12).child("fit"))
    one, two = family.fit(request), family.fit(request)
    scores = one.model.log_prob(held_out)
    _demand((scores == two.model.log_prob(held_out)).all(), "two fits of one request differ")
    _demand(not np.isnan(scores).any(), "a fit scores NaN")
    case.law.compatible(one.model)
    json.dumps(dict(one.info))


CHECKS: tuple[Check, ...] = (
    check_the_family_is_whole,
    check_an_examination_repeats_itself,
    check_rows_do_not_depend_on_the_call,
    check_recorded_log_prob_is_the_score,
    check_a_neutral_selectivity_changes_nothing,
    check_a_cold_law_is_normalised_and_has_less_entropy,
    check_laws_over_other_outcomes_are_refused,
    check_a_law_survives_its_folder,
    check_rows_survive_their_folder,
    check_a_fit_depends_on_its_request_alone,
)


def installed_cases() -> Mapping[str, Callable[[], ContractCase]]:
    """Return the cases of installed families, from the entry-point group ``hydrometer.contract_cases``, by family.

    Examples
    --------
    >>> all(callable(make) for make in installed_cases().values())
    True
    """
    return {p.name: p.load() for p in entry_points(group="hydrometer.contract_cases")}
