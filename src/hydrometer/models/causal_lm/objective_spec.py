"""Objectives of a causal-LM chain as a specification names them. Needs no torch.

p is the teacher's next-token law, q the student's, w the weight.

| objective | at every position of a row | source |
|---|---|---|
| `mle` | -log q of the row's own token | |
| `kl_teacher_student` | KL(p, q) | Hinton et al. 2015 |
| `kl_student_teacher` | KL(q, p) | Gu et al., MiniLLM, 2306.08543 |
| `jsd` | w KL(p, m) + (1 - w) KL(q, m), m = w p + (1 - w) q; TRL's beta is w | Agarwal et al., GKD, 2306.13649 |
| `jsd_scaled` | `jsd` / (w (1 - w)): KL(p, q) as w goes to 0, KL(q, p) as it goes to 1 | |
| `skew_kl_teacher_student` | KL(p, w p + (1 - w) q) | Ko et al., DistiLLM, 2402.03898 |
| `skew_kl_student_teacher` | KL(q, (1 - w) p + w q) | the same |
| `total_variation` | sum of abs(p - q) / 2 | Wen et al., 2307.15190 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hydrometer.core.distillation import MLE, Objective
from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import nearest
from hydrometer.core.spec import Selectivity

__all__ = ["WEIGHTS", "Divergence", "divergence_of", "refuse_infinite"]

WEIGHTS: dict[str, float | None] = {
    "kl_teacher_student": None,
    "kl_student_teacher": None,
    "jsd": 0.5,
    "jsd_scaled": 0.5,
    "skew_kl_teacher_student": 0.1,
    "skew_kl_student_teacher": 0.1,
    "total_variation": None,
}
"""The divergences, and the usual weight of those that have one."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """An objective between two next-token laws.

    Attributes
    ----------
    kind : of `WEIGHTS`.
    weight : w, of those that have one.
    temperature : of the loss: both laws are raised to the power 1 / temperature, and the value is multiplied by its
        square, so that gradients keep their size (Hinton et al. 2015). Apart from the teacher's selectivity.
    mle : share of the row's own negative log-likelihood in a mix of both.
    """

    kind: str
    weight: float = 0.5
    temperature: float = 1.0
    mle: float = 0.0

    @property
    def factor(self) -> float:
        """What the plain value is multiplied by."""
        w = self.weight
        return self.temperature**2 / (w * (1 - w) if self.kind == "jsd_scaled" else 1.0)


def divergence_of(objective: Objective) -> Divergence | None:
    """Return an objective as a divergence; None for maximum likelihood.

    Raises
    ------
    SpecError : an objective or a parameter that there is not, or one out of range.

    Examples
    --------
    >>> divergence_of(Objective.from_json("jsd(weight=0.1, mle=0.2)"))
    Divergence(kind='jsd', weight=0.1, temperature=1.0, mle=0.2)
    """
    if objective == MLE:
        return None
    if objective.name not in WEIGHTS:
        raise SpecError("no such objective", got=objective.name, fix=nearest(objective.name, ["mle", *WEIGHTS]))
    usual = WEIGHTS[objective.name]
    known = {"temperature", "mle"} | ({"weight"} if usual is not None else set())
    given = dict(objective.parameters)
    if unknown := [k for k in given if k not in known]:
        raise SpecError(
            f"{objective.name} has no such parameter", got=unknown[0], fix="it has " + ", ".join(sorted(known))
        )
    found = Divergence(
        objective.name,
        given.get("weight", 0.5 if usual is None else usual),
        given.get("temperature", 1.0),
        given.get("mle", 0.0),
    )
    open_below = objective.name.startswith("jsd")
    if not (0 < found.weight < 1 or (found.weight == 0 and not open_below)):
        raise SpecError("a weight lies between 0 and 1", got=found.weight)
    if not (0 < found.temperature < math.inf) or not 0 <= found.mle < 1:
        fix = "temperature above 0, mle at least 0 and below 1"
        raise SpecError(f"a parameter of {objective.name} is out of range", got=objective.to_json(), fix=fix)
    return found


def refuse_infinite(objective: Objective, s: Selectivity) -> None:
    """Refuse an objective that is infinite under a teacher that drops tokens. Raises SpecError."""
    d = divergence_of(objective)
    reverse = d is not None and (
        d.kind == "kl_student_teacher" or (d.kind == "skew_kl_student_teacher" and d.weight == 0)
    )
    if reverse and (s.top_k is not None or (s.top_p or 1.0) < 1 or (s.min_p or 0.0) > 0):
        raise SpecError(
            f"{objective.label} is infinite: the teacher at {s.label} drops tokens that the student may say",
            got=s.label,
            fix="select by temperature alone, or take jsd or a skew_kl",
        )
