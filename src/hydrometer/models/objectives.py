"""Objectives between next-id laws, as a specification names them. Needs no torch.

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
| `skew_kl_student_teacher_detached` | the same; gradient of `jsd` at 1 - w, over w | DistiLLM-2, 2503.07067 |
| `adaptive_kl` | h KL(p, q) + (1 - h) KL(q, p), h held fixed in the gradient | Wu et al., 2404.02657 |
| `generalised_kl` | sum over kept ids of p log(p / q) - p + q, p not normalised again | Csiszar 1975 |
| `total_variation` | sum of abs(p - q) / 2 | Wen et al., 2307.15190 |

h is the head's share of the sum of abs(p - q). The head is the fewest likeliest ids of p that hold `head` of its mass
(the paper's mu), ties included.

Two more are estimates of a gradient, -A times that of log q of every token of rows that the student drew:

| objective | A | what it estimates without bias |
|---|---|---|
| `policy_gradient_token` | log p - log q of that token | gradient of KL(q, p) at each position, prefixes fixed |
| `policy_gradient_reward_to_go` | the sum of these to the row's end | gradient of KL between the laws of whole rows |

Most programs' "on-policy distillation" is the first; the second is MiniLLM's, 2306.08543.

What of p an objective sees (`core.distillation.TeacherLaw`), where it does not see all of it:

| teacher law | in the place of p | objectives |
|---|---|---|
| `top_k` | p of the k likeliest ids, nothing elsewhere: mass is missing | all that are finite |
| `top_k_renormalised` | the same over its sum | all that are finite, but `generalised_kl` |
| `top_k_bucket` | p and q of these ids, and of all others together, as one more outcome | the same, and KL(q, p) |
| `sampled` | shares of k draws from p, without bias (2503.16870) | what is linear in p: `kl_teacher_student` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hydrometer.core.distillation import DENSE, MLE, Objective, Prefixes, TeacherLaw
from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import nearest
from hydrometer.core.spec import Selectivity

__all__ = [
    "WEIGHTS",
    "Divergence",
    "PolicyGradient",
    "check_prefixes",
    "check_teacher_law",
    "divergence_of",
    "drops",
    "refuse_infinite",
    "refuse_unkept",
]

WEIGHTS: dict[str, float | None] = {
    "kl_teacher_student": None,
    "kl_student_teacher": None,
    "jsd": 0.5,
    "jsd_scaled": 0.5,
    "skew_kl_teacher_student": 0.1,
    "skew_kl_student_teacher": 0.1,
    "skew_kl_student_teacher_detached": 0.1,
    "adaptive_kl": 0.5,
    "generalised_kl": None,
    "total_variation": None,
}
"""The divergences, and the usual weight of those that have one; `adaptive_kl` calls it `head`."""


MOST_KEPT = 1 << 16
"""Most ids of a position that are kept."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """An objective between two next-token laws.

    Attributes
    ----------
    kind : of `WEIGHTS`.
    weight : w, or the head's mass, of those that have one.
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


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """The gradient of a reverse KL estimated from the student's own tokens: -A(x_t) times that of log q(x_t).

    Attributes
    ----------
    to_go : A is the sum of log p - log q from the token to the row's end; else that of the token alone.
    baseline : subtract what is expected of the token's own term, -KL(q, p) at its position.
    length_normalised : divide the sum by its number of tokens.
    """

    to_go: bool
    baseline: bool = False
    length_normalised: bool = False


_GRADIENTS = {
    "policy_gradient_token": {"baseline"},
    "policy_gradient_reward_to_go": {"baseline", "length_normalised"},
}


def divergence_of(objective: Objective) -> Divergence | PolicyGradient | None:
    """Return an objective as a divergence, or as an estimate of its gradient; None for maximum likelihood.

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
    if objective.name not in WEIGHTS and objective.name not in _GRADIENTS:
        names = ["mle", *WEIGHTS, *_GRADIENTS]
        raise SpecError("no such objective", got=objective.name, fix=nearest(objective.name, names))
    usual = WEIGHTS.get(objective.name)
    weight = "head" if objective.name == "adaptive_kl" else "weight"
    known = _GRADIENTS.get(objective.name) or {"temperature", "mle"} | ({weight} if usual is not None else set())
    given = dict(objective.parameters)
    if unknown := [k for k in given if k not in known]:
        raise SpecError(
            f"{objective.name} has no such parameter", got=unknown[0], fix="it has " + ", ".join(sorted(known))
        )
    if objective.name in _GRADIENTS:
        if any(v not in (0, 1) for v in given.values()):
            raise SpecError("an option of a policy gradient is 0 or 1", got=objective.to_json())
        return PolicyGradient(objective.name.endswith("to_go"), **{k: bool(v) for k, v in given.items()})
    found = Divergence(
        objective.name,
        given.get(weight, 0.5 if usual is None else usual),
        given.get("temperature", 1.0),
        given.get("mle", 0.0),
    )
    open_below = not objective.name.startswith("skew")
    if not (0 < found.weight < 1 or (found.weight == 0 and not open_below)):
        raise SpecError(f"a {weight} lies between 0 and 1", got=found.weight)
    if not (0 < found.temperature < math.inf) or not 0 <= found.mle < 1:
        fix = "temperature above 0, mle at least 0 and below 1"
        raise SpecError(f"a parameter of {objective.name} is out of range", got=objective.to_json(), fix=fix)
    return found


def drops(s: Selectivity | None) -> bool:
    """Whether a teacher at this selectivity gives ids no probability."""
    return s is not None and (s.top_k is not None or (s.top_p or 1.0) < 1 or (s.min_p or 0.0) > 0)


def _is_reverse(d: Divergence | PolicyGradient | None) -> bool:
    """Whether it is infinite where the student says what the teacher does not."""
    return isinstance(d, PolicyGradient) or (
        d is not None
        and (
            d.kind in ("kl_student_teacher", "adaptive_kl")
            or (d.kind.startswith("skew_kl_student_teacher") and d.weight == 0)
        )
    )


def refuse_infinite(objective: Objective, s: Selectivity) -> None:
    """Refuse an objective that is infinite under a teacher that drops tokens. Raises SpecError."""
    if _is_reverse(divergence_of(objective)) and drops(s):
        raise SpecError(
            f"{objective.label} is infinite: the teacher at {s.label} drops tokens that the student may say",
            got=s.label,
            fix="select by temperature alone, or take jsd or a skew_kl",
        )


def check_prefixes(text: str) -> Prefixes:
    """Read a source of rows: ``teacher`` or ``truth``, each with a share of own rows, or ``student``. Raises SpecError.

    Examples
    --------
    >>> check_prefixes("truth(student=.5, every=4)").to_json()
    'truth(every=4.0, student=0.5)'
    """
    found = Prefixes.from_json(text)
    given = dict(found.parameters)
    if found.name not in ("teacher", "truth", "student"):
        fix = nearest(found.name, ["teacher", "truth", "student"])
        raise SpecError("prefixes are the teacher's, the truth's, or the student's", got=text, fix=fix)
    known = {"every"} if found.name == "student" else {"student", "every"} if "student" in given else {"student"}
    if unknown := [k for k in given if k not in known]:
        fix = "student(every=4), teacher(student=0.5) or teacher(student=0.5, every=4)"
        raise SpecError(f"prefixes {found.name} have no such parameter", got=unknown[0], fix=fix)
    if not 0 < given.get("student", 0.5) < 1 or given.get("every", 1) not in range(1, 10**6 + 1):
        fix = "a share `student` between 0 and 1, and whole steps `every`"
        raise SpecError("a parameter of prefixes is out of range", got=text, fix=fix)
    return found


_KEPT = ("top_k", "top_k_renormalised", "top_k_bucket", "sampled")


def check_teacher_law(text: str) -> TeacherLaw:
    """Read what an objective sees of the teacher's law: ``dense``, or what is kept, ``top_k(k=64)``. Raises SpecError.

    Examples
    --------
    >>> check_teacher_law("sampled(k=32)").to_json()
    'sampled(k=32)'
    """
    found = TeacherLaw.from_json(text)
    names = [DENSE.name, *_KEPT]
    if found.name not in names:
        fix = nearest(found.name, names)
        raise SpecError("no such teacher_law", got=found.name, fix=fix)
    if found == DENSE:
        return found
    if dict(found.parameters).keys() != {"k"} or dict(found.parameters)["k"] not in range(1, MOST_KEPT + 1):
        fix = f"{found.name if found.name in _KEPT else 'top_k'}(k=64), k from 1 to {MOST_KEPT}, or dense"
        raise SpecError("a teacher_law names how many ids are kept of a position", got=text, fix=fix)
    return found


def refuse_unkept(objective: Objective, law: TeacherLaw, s: Selectivity | None) -> None:
    """Refuse an objective that has no meaning with what is kept of a teacher's law. Raises SpecError."""
    d = divergence_of(objective)
    if law == DENSE or not isinstance(d, Divergence):
        return
    what, fix = "", "teacher_law: [dense]"
    if law.is_sampled and (d.kind != "kl_teacher_student" or d.temperature != 1):
        what, fix = "draws say without bias what is linear in the law alone", "kl_teacher_student at temperature 1"
    elif d.kind == "adaptive_kl":
        what = "its head and tail are told apart over the whole vocabulary"
    elif d.kind == "generalised_kl" and (law.name != "top_k" or drops(s)):
        what, fix = "it leaves alone what is missing of a law", "top_k, and a teacher that drops no tokens"
    elif law.name != "top_k_bucket" and _is_reverse(d):
        what, fix = "it is infinite: the student may say ids that are not kept", "top_k_bucket"
    elif d.temperature != 1 and law.name != "top_k_renormalised":
        what, fix = "the mass that is not kept has no power of its own", "top_k_renormalised, or temperature 1"
    if what:
        raise SpecError(f"{objective.label} has no meaning from {law.label}: {what}", got=law.to_json(), fix=fix)
