"""Examine a planned run: its design, its chains, and the machine it is to run on.

Findings of a family that stores its draws need a probe of the truth, so they are an artifact, `examine-<key>`, keyed by
the truth's identity, the chain and the numerics class: computed once, read by every later run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydrometer._version import __version__
from hydrometer.core.errors import FolderError, InputError, StoreError
from hydrometer.core.findings import SEVERITIES, Finding, warning
from hydrometer.core.io.files import cache_home
from hydrometer.core.io.yaml_io import is_array
from hydrometer.core.watching import doing
from hydrometer.models.capabilities import AsksParts, GivenModels, TextTruths
from hydrometer.models.families import RunSpec
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.spec_merge import beyond
from hydrometer.run.preflight.design import examine_design
from hydrometer.run.preflight.machine import examine_machine
from hydrometer.store.artifacts import ArtifactStore, canonical_json, content_key, is_whole
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url

__all__ = ["Diagnosis", "diagnose", "examined_folder", "keep", "remembered", "shared_prompts", "told"]

STAGE, VERSION = "examine", 4
_FILE = "findings.json"
_NAMED = 6


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings of an examination.

    Attributes
    ----------
    lasting : findings about the specification and its models, equal on every machine of one numerics class.
    passing : findings about this machine and folder, now.
    probed : what families found by drawing and the run's folder does not keep, by the key of the artifact that does.
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


def diagnose(spec: RunSpec, plan: Plan, artifacts: Path | Url, asked: RunSpec | None = None) -> Diagnosis:
    """Examine a run before it starts; nothing is written.

    Parameters
    ----------
    spec : of the whole run, joined with what its folder accepted before.
    plan : its plan.
    artifacts : where its artifacts are or will be; need not exist.
    asked : what is asked for now, where the folder accepted other specifications before.
    """
    passing = (*examine_machine(plan, artifacts), *_earlier([] if asked is None else beyond(spec, asked)))
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


def _earlier(more: Sequence[str]) -> Iterator[Finding]:
    if more:
        what = f"the folder also asks for {', '.join(more[:_NAMED])}" + (", ..." if more[_NAMED:] else "")
        why = "a run is of all that its folder was ever asked for, and goes on with that, too"
        yield warning("asked-earlier", what, why, "nothing if that is meant; for less, choose another --out")


def told(spec: RunSpec, found: Iterable[Finding]) -> list[Finding]:
    """Downgrade to notes the warnings that the specification lists as `known`."""
    known = spec.known or ()
    return [replace(f, severity="note") if f.severity == "warning" and f.code in known else f for f in found]


def shared_prompts(spec: RunSpec, chain: ChainPlan) -> list[Finding]:
    """Return the warning that models are judged on the prompts that they are trained on; none where it is known."""
    family = chain.context.family
    found = family.examine_parts(chain.context.spec) if isinstance(family, AsksParts) else ()
    return [replace(f, chain=chain.context.name) for f in told(spec, found) if f.severity == "warning"]


def examined_folder() -> Path:
    """Return where this release's `doctor` keeps what it found by drawing, for the run that follows it."""
    return cache_home() / "examined" / __version__


def remembered(found: Diagnosis) -> Diagnosis:
    """Keep there what the doctor found by drawing, unless it is fatal; what is not kept, a run draws again."""
    if found.probed and not any(f.is_fatal for f in found.lasting):
        with suppress(FolderError, StoreError):
            keep(ArtifactStore(examined_folder()), found)
    return found


def keep(store: ArtifactStore, diagnosis: Diagnosis) -> None:
    """Store what was found by drawing. In a run's folder only while holding its lock."""
    for key, found in diagnosis.probed.items():
        if not store.has(STAGE, key):
            with store.write(STAGE, key, {"inputs": []}) as (folder, _):
                (folder / _FILE).write_text(canonical_json([f.to_json() for f in found]), encoding="utf-8")


def _examined(chain: ChainPlan, artifacts: Path | Url) -> tuple[tuple[Finding, ...], str | None]:
    """Return the family's findings, and their key if they needed a probe that the run's folder does not keep."""
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
            **_contents(chain),
        }
    )
    if (kept := _kept(artifacts, key)) is not None:
        return kept, None
    before = _kept(examined_folder(), key)
    return (tuple(family.examine(spec)) if before is None else before), key


def _contents(chain: ChainPlan) -> dict[str, object]:
    """What models and texts that a chain names are by content, beside its truth; nothing where it names none."""
    family, spec, found = chain.context.family, chain.context.spec, dict[str, object]()
    if isinstance(family, GivenModels) and (roles := family.given_roles(spec)):
        found["given"] = {role: dict(family.given_identity(spec, role)) for role in roles}
    if isinstance(family, TextTruths):
        if (text := family.text_truth(spec)) is not None:
            found["text"] = dict(text.identity)
        if baselines := family.baselines(spec):
            found["baselines"] = [dict(b.identity) for b in baselines]
    return found


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
