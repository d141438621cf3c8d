"""The caveat of figures that few rows decide, said once for a chain's tables, with their number."""

from __future__ import annotations

from hydrometer.report.typed_results import Cell, Chain, Run
from hydrometer.report.values import count, mapping, text
from hydrometer.report.wording import KL, KL_OF_TRUTH, among, model

__all__ = ["row_words"]

_NAMES = {
    "precision": "precision",
    "recall": "recall",
    "entropy": "entropy",
    "kl_student_truth": KL,
    "kl_truth_student": KL_OF_TRUTH,
}
_SELDOM = 0.05
_NEARLY_ALL = 0.8
_NORMAL = 18
"""Prompts of which a third, what carries a normal figure's error, is six (docs, Uncertainty)."""


def row_words(run: Run, chain: Chain) -> list[str]:
    """Say which of a chain's main figures few rows decide, or few prompts where those are a sample; else nothing.

    A figure that nearly all cells are cautioned of is counted; of another its models are named.
    """
    cells = [c for c in run.cells if c.chain == chain.name and c.ok]
    parts: list[str] = []
    for metric, name in _NAMES.items():
        known = [c for c in cells if metric in c.values]
        few = [c for c in known if metric in c.few]
        if len(few) <= _SELDOM * len(known):
            continue
        of = f"of {len(few)} of {len(known)} cells"
        groups = _groups(run, few)
        if len(few) < _NEARLY_ALL * len(known) and len(groups) <= 3:
            of = f"of {among(groups)}"
        parts.append(f"{name} {of}")
    if not parts:
        return []
    prompts = count(chain.prompts.get("judged"))
    if not _is_sample(run, chain) or not prompts:
        return [
            f"Few rows decide {among(parts)}: fewer than six carry the error, which may be larger. Judge with "
            "more rows (data.evaluate)."
        ]
    why = "as of any so few" if prompts < _NORMAL else "for fewer than six of them carry the error"
    return [
        f"The {prompts} prompts are a sample, and few of them decide {among(parts)}, {why}: the error may be larger. "
        "Judge on more prompts; more answers to these do not mend it."
    ]


def _groups(run: Run, cells: list[Cell]) -> list[str]:
    return [model(run.groups[g]) for g in dict.fromkeys(c.group for c in cells) if g in run.groups]


def _is_sample(run: Run, chain: Chain) -> bool:
    """Whether a chain's prompts are a sample of a population, as its specification says."""
    truths = (mapping(mapping(mapping(s.get("chains")).get(chain.name)).get("truth")) for s in run.specs)
    return any(text(mapping(t.get(k)).get("are")) == "sample" for t in truths for k in ("prompts", "text"))
