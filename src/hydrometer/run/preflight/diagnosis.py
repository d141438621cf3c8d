"""Examine a planned run: its design, its chains, and the machine it is to run on.

Findings of a family that stores its draws need a probe of the truth, so they are an artifact, `examine-<key>`, keyed by
the truth's identity, the chain and the numerics class: computed once, read by every later run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydrometer.core.errors import InputError, StoreError
from hydrometer.core.findings import SEVERITIES, Finding
from hydrometer.core.io.yaml_io import is_array
from hydrometer.core.watching import doing
from hydrometer.models.capabilities import AsksParts
from hydrometer.models.families import RunSpec
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.preflight.design import examine_design
from hydrometer.run.preflight.machine import examine_machine
from hydrometer.store.artifacts import ArtifactStore, canonical_json, content_key, is_whole
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url

__all__ = ["Diagnosis", "diagnose", "keep", "shared_prompts", "told"]

STAGE, VERSION = "examine", 3
_FILE = "findings.json"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings of an examination.

    Attributes
    ----------
    lasting : findings about the specification and its models, equal on every machine of one numerics class.
    passing : findings about this machine and folder, now.
    probed : what families found by drawing, by the key of the artifact that keeps it.
    """

    lasting: tuple[Finding, ...]
    passing: tuple[Finding, ...] = ()
    probed: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict[str, tuple[Finding, ...]])

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the most severe first."""
        return tuple(sorted((*self.passing, *self.lasting), key=lambda f: SEVERITIES.index(f.severity)))

    @property
    def is_fatal(self) -> bool:
        """Whether a run would be refused."""
        return any(f.is_fatal for f in self.findings)

    def refuse(self) -> None:
        """Raise InputError, in one line, if a finding is fatal."""
        fatal = [f for f in self.findings if f.is_fatal]
        if not fatal:
            return
        first = fatal[0]
        where = f"{first.chain}: " if first.chain else ""
        more = f" (and {len(fatal) - 1} more; see `hydrometer doctor`)" if len(fatal) > 1 else ""
        raise InputError(f"{where}{first.what}: {first.why}", fix=first.fix + more)


def diagnose(spec: RunSpec, plan: Plan, artifacts: Path | Url) -> Diagnosis:
    """Examine a run before it starts; nothing is written.

    Parameters
    ----------
    spec : of the whole run, joined with what its folder accepted before.
    plan : its plan.
    artifacts : where its artifacts are or will be; need not exist.
    """
    passing = tuple(examine_machine(plan, artifacts))
    # A machine that cannot hold the run cannot be asked to open its models.
    fits = not any(f.is_fatal for f in passing)
    lasting: list[Finding] = []
    probed: dict[str, tuple[Finding, ...]] = {}
    for name, chain in plan.chains.items():
        doing(f"examining {name}")
        found, key = _examined(chain, artifacts) if fits else ((), None)
        if key is not None:
            probed[key] = found
        lasting += [replace(f, chain=name) for f in told(spec, (*found, *examine_design(spec, name)))]
    return Diagnosis(tuple(lasting), passing, probed)


def told(spec: RunSpec, found: Iterable[Finding]) -> list[Finding]:
    """Downgrade to notes the warnings that the specification lists as `known`."""
    known = spec.known or ()
    return [replace(f, severity="note") if f.severity == "warning" and f.code in known else f for f in found]


def shared_prompts(spec: RunSpec, chain: ChainPlan) -> list[Finding]:
    """Return the warning that models are judged on the prompts that they are trained on; none where it is known."""
    family = chain.context.family
    found = family.examine_parts(chain.context.spec) if isinstance(family, AsksParts) else ()
    return [replace(f, chain=chain.context.name) for f in told(spec, found) if f.severity == "warning"]


def keep(store: ArtifactStore, diagnosis: Diagnosis) -> None:
    """Store what was found by drawing. Only while holding the folder's lock."""
    for key, found in diagnosis.probed.items():
        if not store.has(STAGE, key):
            with store.write(STAGE, key, {"inputs": []}) as (folder, _):
                (folder / _FILE).write_text(canonical_json([f.to_json() for f in found]), encoding="utf-8")


def _examined(chain: ChainPlan, artifacts: Path | Url) -> tuple[tuple[Finding, ...], str | None]:
    """Return the family's findings, and their key if they needed a probe."""
    family, spec = chain.context.family, chain.context.spec
    if not family.keeps_draws:
        return tuple(family.examine(spec)), None
    key = content_key(
        {
            "stage": STAGE,
            "version": VERSION,
            "family": family.name,
            "truth": chain.truth.key,
            "numerics": dict(family.numerics(spec)),
            "chain": spec.model_dump(mode="json", exclude_none=True),
        }
    )
    kept = _kept(artifacts, key)
    return (tuple(family.examine(spec)) if kept is None else kept), key


def _kept(artifacts: Path | Url, key: str) -> tuple[Finding, ...] | None:
    try:
        if isinstance(artifacts, Path):  # opening a local store creates its folder, and `has` deletes damaged artifacts
            folder = artifacts / f"{STAGE}-{key}"
            return _read(folder / _FILE) if is_whole(folder, STAGE, key) else None
        return _read(open_store(artifacts).path(STAGE, key) / _FILE)
    except (OSError, StoreError):
        return None


def _read(path: Path) -> tuple[Finding, ...] | None:
    """Return stored findings; None if missing or unreadable, so that they are computed again."""
    try:
        value: object = json.loads(path.read_bytes())
        return tuple(Finding.from_json(v) for v in value) if is_array(value) else None
    except (OSError, ValueError, RecursionError, StoreError):
        return None
