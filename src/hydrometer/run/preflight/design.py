"""Statistical design problems of a plan, in any family: seeds, rows, selectivities and controls."""

from __future__ import annotations

from collections.abc import Iterator

from hydrometer.core.findings import Finding, note, warning
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family
from hydrometer.models.capabilities import GivenModels, Maps
from hydrometer.models.families import RunSpec, family_of
from hydrometer.models.finite_selectivity import canonical

__all__ = ["examine_design"]

_FEW_ROWS = 50


def examine_design(spec: RunSpec, name: str) -> list[Finding]:
    """Return the findings on one chain's plan."""
    chain = spec.chains[name]
    family = family_of(chain)
    seeds = len(family.map_seeds(chain, spec.seeds) if isinstance(family, Maps) else spec.seeds)
    found = [*_seeds(seeds, chain.resample), *_rows(family.sizes(chain)["evaluate"], seeds, chain.resample)]
    cooled = [s for s in chain.selectivity if canonical(s) is not None]
    if len(cooled) == len(chain.selectivity):
        found.append(
            warning(
                "no-neutral",
                "no selectivity leaves the teacher as it is",
                "there is no student of the unselected teacher, so the trade-off has no baseline and the decoding "
                "control of that student is missing",
                "add the neutral setting to selectivity: {temperature: 1}, or {weight_power: 1} for mixtures",
            )
        )
    if not cooled:
        found.append(
            warning(
                "no-selectivity",
                "every selectivity leaves the teacher as it is",
                "nothing is made more selective: there is no trade-off to measure",
                "add a setting that sharpens to selectivity",
            )
        )
    elif not any(canonical(s) for s in chain.controls):
        found.append(_no_control(chain))
    if not any(level.role == "teacher" for level in family.levels(chain)) and not _has_given_teacher(family, chain):
        is_shared = seeds > 1 and "data" not in chain.resample
        found.append(_no_gate(family, is_alone=len(family.levels(chain)) == 1, is_shared=is_shared))
    return found


def _has_given_teacher(family: Family, chain: ChainSpec) -> bool:
    """Whether the teacher is a model as it is, and not the truth."""
    return isinstance(family, GivenModels) and "teacher" in family.given_roles(chain)


def _seeds(seeds: int, resample: tuple[str, ...]) -> Iterator[Finding]:
    if seeds == 1:
        yield warning(
            "one-seed",
            "the run has one seed",
            "intervals hold the error of the evaluation rows alone; how much another fit would differ is not in "
            "them, and is often more",
            "set seeds to 3 or more; a finished folder is extended by running it again",
        )
        return
    if not resample:
        yield warning(
            "seeds-alike",
            f"the run has {seeds} seeds and resample is empty",
            "a seed redraws nothing, so all seeds are one",
            "name in resample what a seed redraws, or set seeds to 1",
        )


def _rows(rows: int, seeds: int, resample: tuple[str, ...]) -> Iterator[Finding]:
    in_all = rows * seeds if "evaluate" in resample else rows
    if in_all >= _FEW_ROWS:
        return
    yield warning(
        "few-rows",
        f"every model is judged on {in_all} rows",
        "an interval from so few rows is wide, and its t distribution trusts a mean of few skewed figures",
        f"set data.evaluate to {_FEW_ROWS} or more",
    )


def _no_control(chain: ChainSpec) -> Finding:
    code, what = "no-control", "decoding is empty: no model is decoded at the teacher's settings"
    why = "what distilling gained cannot be told from what the same setting gains when the direct student is decoded"
    if chain.undecoded is not None:
        because, remedy = chain.undecoded
        what = f"no model is decoded at the teacher's settings: {because}"
        why = "decoding would change nothing, so that there is no control to compare distilling with"
        return note(code, what, why, f"nothing; {remedy} where a control is wanted")
    return warning(code, what, why, "leave decoding out; it then takes the entries of selectivity")


def _no_gate(family: Family, *, is_alone: bool, is_shared: bool) -> Finding:
    """Say what a truth that teaches leaves to compare.

    `is_alone`: no assistant stands between it and the student; `is_shared`: all seeds have the direct student's rows.
    """
    same = (
        "; the direct student learns from rows of the same law as one distilled at temperature 1: what is compared is "
        "temperature in the data against temperature when decoding"
    )
    if is_alone and is_shared:
        same += (
            ". The direct student's rows are one draw for all seeds, so its difference from the one distilled at "
            "temperature 1 is the luck of that draw, which no interval holds: resample data, too"
        )
    return note(
        "teacher-is-truth",
        "the teacher is the truth itself",
        "the teacher gate, whether the teacher recalls more than the direct student, is passed by definition and is "
        "not reported" + (same if is_alone else ""),
        f"nothing, where that is meant; else give the {family.name} chain a teacher",
    )
