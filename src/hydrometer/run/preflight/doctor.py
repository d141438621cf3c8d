"""The verb `doctor`: examine a run before paying for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydrometer.core.errors import FolderError, InputError, SpecError
from hydrometer.core.findings import Finding, fatal
from hydrometer.models.families import RunSpec, family_of
from hydrometer.run.graph.inputs import check_inputs, check_places
from hydrometer.run.graph.join import joined
from hydrometer.run.graph.plan import plan_run
from hydrometer.run.graph.recipes import load_spec
from hydrometer.run.preflight.design import examine_design
from hydrometer.run.preflight.diagnosis import Diagnosis, diagnose, told
from hydrometer.store.records import RunFolder
from hydrometer.store.storage_uri import place_of

__all__ = ["doctor"]


def doctor(
    source: str | Path | RunSpec,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Diagnosis:
    """Examine a run: what would make it fail, or spoil its figures. Nothing is written.

    Language models are opened for a small probe of the truth. Every finding names what is found, why it matters, and a
    fix; `run` calls the same examination first and refuses to start on a fatal finding.

    Parameters
    ----------
    source : a recipe's name, a YAML file, or a specification.
    out : the folder or URL that the run would use; ``runs/NAME`` by default. What is there already is not asked of the
        disk.
    overrides : ``a.b.c=VALUE``, as ``--set``.
    cache : folder or URL for artifacts, as for `run`.

    Raises
    ------
    SpecError : the specification cannot be read. What is wrong behind it (a model that is not there, a folder that
        holds another experiment) is a fatal finding.

    Examples
    --------
    >>> import hydrometer as hm
    >>> found = hm.doctor("markov", overrides=["seeds=1"])
    >>> found.is_fatal, sorted({f.code for f in found.findings if f.severity == "warning"})
    (False, ['one-seed'])
    """
    spec = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    root = place_of(out) if out is not None else Path("runs") / spec.name
    artifacts = place_of(cache) if cache is not None else root / "artifacts"
    try:
        folder = RunFolder(root)
        check_places(root, cache)
    except FolderError as e:
        return _no_folder(spec, e)
    refused = _refused(spec)
    if any(f.chain is None for f in refused):
        return Diagnosis(tuple(refused))
    if refused:
        sound = {n: c for n, c in spec.chains.items() if n not in {f.chain for f in refused}}
        if not sound:
            return Diagnosis(tuple(refused))
        rest = spec.model_copy(update={"chains": sound})
        found = diagnose(rest, plan_run(rest), artifacts)
        return Diagnosis((*refused, *found.lasting), found.passing)
    try:
        whole = joined(folder, spec)
    except (FolderError, SpecError) as e:
        return _no_folder(spec, e)
    return diagnose(whole, plan_run(whole), artifacts)


def _no_folder(spec: RunSpec, e: InputError) -> Diagnosis:
    """Return what can be said if the run's folder cannot be used."""
    lasting = tuple(replace(f, chain=name) for name in spec.chains for f in told(spec, examine_design(spec, name)))
    why = "a folder holds one experiment; nothing in it is ever overwritten"
    return Diagnosis(lasting, (fatal("folder", e.said, why, e.fix or "choose another --out"),))


def _refused(spec: RunSpec) -> list[Finding]:
    """Return what the families' checks and the plan refuse: one finding a chain, or one for the run."""
    why = "the run would not start"
    found: list[Finding] = []
    for dear in (False, True):  # cheap checks of all chains first, before any model is opened
        for name, chain in spec.chains.items():
            if name in (f.chain for f in found):
                continue
            try:
                family_of(chain).check(chain) if dear else check_inputs([chain])
            except InputError as e:
                found.append(replace(fatal("refused", e.said, why, e.fix or "mend the specification"), chain=name))
    if not found:
        try:
            plan_run(spec)
        except InputError as e:
            found.append(fatal("refused", e.said, why, e.fix or "mend the specification"))
    return found
