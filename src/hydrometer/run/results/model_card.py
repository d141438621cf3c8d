"""A model's card, as the model hubs show one: what it is, what it was trained on, its figures, how to make it again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from hydrometer.core.errors import one_line
from hydrometer.core.io.yaml_io import is_object
from hydrometer.run.graph.plan import Plan
from hydrometer.run.results.provenance import versions

__all__ = ["CARD", "cards", "model_card"]

CARD = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FIGURES = (
    *("precision", "recall", "precision_reference", "entropy"),
    *("kl_student_truth", "kl_truth_student", "kl_student_reference"),
    *("precision_per_token", "recall_per_token", "precision_per_byte", "recall_per_byte", "length", "eos_rate"),
)
_ROWS = {"truth": "the truth's rows", "teacher": "the teacher's rows", "text": "a text", None: "not known"}


def cards(plan: Plan, accepted: Mapping[str, Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """Return what writes the card of a plan's model from its record; `accepted` are specifications by their hashes."""

    def card(record: Mapping[str, Any]) -> str:
        context = plan.chains[record["chain"]].context
        chain = context.spec.model_dump(mode="json", exclude_none=True)
        return model_card(record, chain, context.family.describe_truth(context.spec), accepted, versions())

    return card


def model_card(
    record: Mapping[str, Any],
    chain: Mapping[str, Any],
    truth: str,
    accepted: Mapping[str, Mapping[str, Any]],
    made_by: Mapping[str, str],
) -> str:
    """Write the card of a judged model in Markdown, with the front matter of a model hub.

    Parameters
    ----------
    record : its cell, as results.json holds it.
    chain : its chain's specification.
    truth : the chain's truth in words.
    accepted : the run's accepted specifications by their hashes.
    made_by : versions of what made it.
    """
    level = _level(record, chain)
    direct = record["role"] == "teacher" or record.get("training") == "direct" or _is_warm(record, chain)
    base = _base(level, chain, direct=direct)
    front: dict[str, object] = {"library_name": "transformers", "tags": ["distillation", "hydrometer"]}
    if base is not None and _HUB_ID.fullmatch(base) and not Path(base).exists():
        front["base_model"] = base
    about = {
        "truth": truth,
        "teacher": _said(chain.get("teacher")),
        "base": base or "random weights",
        "starts from": "the direct student" if _is_warm(record, chain) else _said(level.get("init")),
        "trained on": _ROWS.get(record.get("prefix_source"), str(record.get("prefix_source"))),
        "teacher's setting": _said(record.get("selectivity")),
        "objective": record.get("loss") or ("not known" if record.get("origin") else "mle"),
        "training": _said(level.get("training")),
        "made elsewhere": _said(record.get("origin")),
        "seed": _said(record.get("seed")),
    }
    figures = [
        (name, f"{f['value']:.5g}", "–" if f["ci95"] is None else "{:.5g} to {:.5g}".format(*f["ci95"]), f["unit"])
        for name, f in cast("dict[str, dict[str, Any]]", record["metrics"]).items()
        if name in _FIGURES and isinstance(f["value"], float)
    ]
    specs = "\n".join(
        f"`{key}.yaml`:\n\n```yaml\n{yaml.safe_dump(dict(a['spec']), sort_keys=False)}```\n"
        for key, a in accepted.items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {record["name"]}

{_table(("", ""), [(k, str(v)) for k, v in about.items() if v not in ("", "null")])}
## Figures

Of cell `{record["id"]}`; results.json has all. Precision: E under the model of the truth's log-probability; recall: E
under the truth of the model's. An interval is of this model: the luck of training is not in it.

{_table(("figure", "value", "95 % interval", "unit"), figures)}
## How to make it again

Each of the specifications below that the run accepted, in turn: `hydrometer run HASH.yaml`, with the files that it
names. The fit's artifact is `{record["artifacts"]["fit"]}`.

{_table(("", "version"), sorted(made_by.items()))}
{specs}"""


def _level(record: Mapping[str, Any], chain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a chain says of the model: of its role's level, and of a baseline what it says itself."""
    role = str(record["role"])
    number = role.removeprefix("assistant_")
    found: object = chain["assistants"][int(number) - 1] if number != role else chain.get(role)
    level = found if is_object(found) and not record.get("origin") else {}
    baselines: list[dict[str, Any]] = chain.get("baselines") or []
    for own in baselines:
        if own["name"] == record.get("baseline"):
            level = level | {k: own[k] for k in ("init", "training") if own.get(k) is not None}
    return level


def _is_warm(record: Mapping[str, Any], chain: Mapping[str, Any]) -> bool:
    return bool(chain.get("warm_start")) and record.get("training") == "distilled" and not record.get("origin")


def _base(level: Mapping[str, Any], chain: Mapping[str, Any], *, direct: bool) -> str | None:
    """Return the model whose weights a level starts from, or the level above it started from; None of random ones."""
    init, teacher, found = level.get("init"), chain.get("teacher"), chain["truth"].get("source")
    if init in (None, "scratch"):
        return None
    named = init if is_object(init) else {"layers_of": init}
    if "source" in named:
        found = named["source"]
    elif named["layers_of"] == "above" and not direct and is_object(teacher):
        found = teacher["source"] if "source" in teacher else _base(teacher, chain, direct=True)
    return found if found is None or isinstance(found, str) else json.dumps(found)


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(one_line(c).replace("|", "\\|") for c in line) + " |\n" for line in lines)
