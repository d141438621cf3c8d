"""How a student is distilled, as one value: the teacher's selectivity, the objective, and whose rows it is trained on.

Plans, cell ids, summaries, reports, exports and advice tell students apart by this value alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from hydrometer.core.errors import SpecError
from hydrometer.core.spec import ChainSpec, Selectivity, parse_selectivity

__all__ = [
    "DENSE",
    "MLE",
    "STUDENT_ROWS",
    "TEACHER_ROWS",
    "TRUTH_ROWS",
    "Distillation",
    "Objective",
    "Prefixes",
    "TeacherLaw",
    "Wanted",
    "distillations_of",
    "learns_from",
    "parse_wanted",
]

_WRITTEN = re.compile(r"([a-z][a-z0-9_]*)(?:\(([^()]*)\))?")
_PARAMETER = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class _Named:
    """A name with numeric parameters, which are kept in alphabetical order."""

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(sorted((k, float(v)) for k, v in self.parameters)))

    @classmethod
    def from_json(cls, text: object) -> Self:
        """Parse what `to_json` returns. Raises SpecError."""
        found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise SpecError(f"{cls.__name__} is not NAME or NAME(KEY=NUMBER, ...)", got=text)
        parameters: dict[str, float] = {}
        for part in found[2].split(",") if found[2] is not None else ():
            given = _PARAMETER.fullmatch(part)
            try:
                value = math.nan if given is None else float(given[2])
            except ValueError:
                value = math.nan
            if given is None or not math.isfinite(value) or given[1] in parameters:
                raise SpecError(f"a parameter of {found[1]} is not KEY=NUMBER, each key once", got=text)
            parameters[given[1]] = value
        return cls(found[1], tuple(parameters.items()))

    def to_json(self) -> str:
        """Return it as specifications and results write it: ``mle``, or ``jsd(weight=0.5)``."""
        inside = ", ".join(f"{k}={self._said(v)}" for k, v in self.parameters)
        return f"{self.name}({inside})" if inside else self.name

    @property
    def label(self) -> str:
        """For people: ``jsd (weight 0.5)``."""
        inside = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in self.parameters)
        return f"{self.name} ({inside})" if inside else self.name

    @property
    def slug(self) -> str:
        """For file names; never parsed back."""
        return "-".join((self.name, *(f"{k}{self._said(v)}" for k, v in self.parameters)))

    def _said(self, value: float) -> str:
        return repr(value)


@dataclass(frozen=True, slots=True)
class Objective(_Named):
    """A training objective and its parameters.

    Examples
    --------
    >>> Objective.from_json("jsd(weight=.5)").slug, Objective.from_json("mle").to_json()
    ('jsd-weight0.5', 'mle')
    """


@dataclass(frozen=True, slots=True)
class Prefixes(_Named):
    """The source of the rows that a student is trained on: the truth, the teacher, or the student itself.

    Examples
    --------
    >>> Prefixes.from_json("teacher(student=0.5)").own, Prefixes("student").own, Prefixes("truth").own
    (0.5, 1.0, 0.0)
    """

    @property
    def own(self) -> float:
        """Share of the steps that learn from rows which the student drew (lambda of Agarwal et al., 2306.13649)."""
        return 1.0 if self.name == "student" else dict(self.parameters).get("student", 0.0)

    @property
    def every(self) -> int:
        """For how many steps the student draws rows at once."""
        return int(dict(self.parameters).get("every", 1))


@dataclass(frozen=True, slots=True)
class TeacherLaw(_Named):
    """What of the teacher's next-token law an objective sees: all of it, or what is kept of it along the rows.

    Examples
    --------
    >>> TeacherLaw.from_json("top_k_bucket(k=64)").slug, TeacherLaw("dense").k
    ('top_k_bucket-k64', 0)
    """

    def _said(self, value: float) -> str:
        return f"{value:.17g}"

    @property
    def k(self) -> int:
        """How many ids are kept of a position."""
        return int(dict(self.parameters).get("k", 0))

    @property
    def is_sampled(self) -> bool:
        """Whether they are drawn, and not the likeliest."""
        return self.name == "sampled"

    @property
    def stored(self) -> TeacherLaw:
        """What is kept along rows, one for all forms in which it may be seen."""
        return self if self.is_sampled else TeacherLaw("top_k", self.parameters)


MLE = Objective("mle")
DENSE = TeacherLaw("dense")
TEACHER_ROWS = Prefixes("teacher")
TRUTH_ROWS = Prefixes("truth")
STUDENT_ROWS = Prefixes("student")


def learns_from(objective: Objective, prefixes: Prefixes, law: TeacherLaw = DENSE) -> bool:
    """Whether an objective teaches anything on such rows, that no other student of a chain learns.

    Maximum likelihood has the teacher's rows: the truth's are the direct student's, and of its own rows a student
    learns nothing. A policy gradient is unbiased on rows of the student as it is, drawn for one step. A law is kept
    along rows that are drawn before the fit, and maximum likelihood does not see it.
    """
    if law != DENSE and (objective == MLE or prefixes.own):
        return False
    if objective == MLE:
        return prefixes != TRUTH_ROWS and not prefixes.own
    if objective.name.startswith("policy_gradient"):
        return prefixes == STUDENT_ROWS
    return not (prefixes.own and dict(objective.parameters).get("mle"))


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student is distilled.

    Attributes
    ----------
    selectivity : of the teacher.
    objective : what training minimises.
    prefixes : whose rows it is trained on.
    teacher_law : what of the teacher's law the objective sees.

    Examples
    --------
    >>> Distillation(Selectivity(temperature=0.8)).slug
    'temperature0.8'
    >>> d = Distillation(Selectivity(temperature=0.8), Objective("jsd", (("weight", 0.5),)))
    >>> d.slug, d.label
    ('temperature0.8.jsd-weight0.5', 'temperature 0.8 by jsd (weight 0.5)')
    >>> Distillation.from_json(d.to_json()) == d
    True
    """

    selectivity: Selectivity
    objective: Objective = MLE
    prefixes: Prefixes = TEACHER_ROWS
    teacher_law: TeacherLaw = DENSE

    @property
    def method(self) -> tuple[Objective, Prefixes, TeacherLaw]:
        """Everything but the selectivity."""
        return self.objective, self.prefixes, self.teacher_law

    @property
    def variant(self) -> dict[str, str]:
        """Where the method is not maximum likelihood on the teacher's rows: its parts, under their names in results."""
        if self.method == (MLE, TEACHER_ROWS, DENSE):
            return {}
        return {"loss": self.objective.to_json(), "prefix_source": self.prefixes.to_json(), **self._law}

    @property
    def _law(self) -> dict[str, str]:
        return {} if self.teacher_law == DENSE else {"teacher_law": self.teacher_law.to_json()}

    @property
    def slug(self) -> str:
        """For file names; never parsed back. For maximum likelihood on the teacher's rows, the selectivity's slug."""
        parts = [self.selectivity.slug]
        parts += [] if self.objective == MLE else [self.objective.slug]
        parts += [] if self.teacher_law == DENSE else [self.teacher_law.slug]
        parts += [] if self.prefixes == TEACHER_ROWS else [f"on-{self.prefixes.slug}"]
        return ".".join(parts)

    @property
    def label(self) -> str:
        """For people: ``temperature 0.8 by jsd (weight 0.5)``."""
        objective = "" if self.objective == MLE else f" by {self.objective.label}"
        prefixes = "" if self.prefixes == TEACHER_ROWS else f" on rows of the {self.prefixes.label}"
        law = "" if self.teacher_law == DENSE else f" from {self.teacher_law.label}"
        return self.selectivity.label + objective + law + prefixes

    def to_json(self) -> dict[str, object]:
        """Return its parts, under their names in results."""
        return {
            "selectivity": self.selectivity.to_json(),
            "loss": self.objective.to_json(),
            "prefix_source": self.prefixes.to_json(),
            **self._law,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Distillation:
        """Read what `to_json` returns; missing parts take their defaults. Raises SpecError."""
        selectivity = Selectivity(**value["selectivity"])
        objective = Objective.from_json(value.get("loss") or MLE.to_json())
        prefixes = Prefixes.from_json(value.get("prefix_source") or TEACHER_ROWS.to_json())
        return cls(selectivity, objective, prefixes, TeacherLaw.from_json(value.get("teacher_law") or DENSE.to_json()))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What names a distillation: a selectivity, and what else tells it apart where a run has several."""

    selectivity: Selectivity
    objective: Objective | None = None
    prefixes: Prefixes | None = None
    teacher_law: TeacherLaw | None = None

    @property
    def label(self) -> str:
        """For people."""
        method = self.objective or MLE, self.prefixes or TEACHER_ROWS, self.teacher_law or DENSE
        return Distillation(self.selectivity, *method).label

    def is_method_of(self, d: Distillation) -> bool:
        """Whether `d` has the parts of a method that are named here."""
        named = self.objective, self.prefixes, self.teacher_law
        return all(mine in (None, own) for mine, own in zip(named, d.method, strict=True))


def parse_wanted(given: str | Selectivity | None) -> Wanted | None:
    """Read ``temperature=0.8`` or ``temperature=0.8,loss=mle``; a selectivity stands for itself.

    Raises
    ------
    SpecError : anything else.

    Examples
    --------
    >>> parse_wanted("temperature=0.8,loss=jsd(weight=0.5)").label
    'temperature 0.8 by jsd (weight 0.5)'
    """
    if not isinstance(given, str):
        return None if given is None else Wanted(given)
    method: dict[str, str] = {}
    rest: list[str] = []
    for part in re.split(r",(?![^(]*\))", given):
        key, _, value = (p.strip() for p in part.partition("="))
        if key in ("loss", "prefix_source", "teacher_law") and key not in method:
            method[key] = value
        else:
            rest.append(part)
    objective = Objective.from_json(method["loss"]) if "loss" in method else None
    prefixes = Prefixes.from_json(method["prefix_source"]) if "prefix_source" in method else None
    law = TeacherLaw.from_json(method["teacher_law"]) if "teacher_law" in method else None
    return Wanted(parse_selectivity(",".join(rest)), objective, prefixes, law)


def distillations_of(chain: ChainSpec) -> tuple[Distillation, ...]:
    """Return a chain's distillations: every selectivity with every objective, on the rows of every source it suits.

    The teacher's rows alone, where the family's chains have no field `prefixes`, and its whole law, where they have no
    `teacher_law`. Raises SpecError for repetitions, and for one of these without any other that suits it.
    """
    objectives = [Objective.from_json(o) for o in chain.loss]
    prefixes = [Prefixes.from_json(p) for p in getattr(chain, "prefixes", ("teacher",))]
    laws = [TeacherLaw.from_json(w) for w in getattr(chain, "teacher_law", ("dense",))]
    ways = [(o, p, w) for o in objectives for p in prefixes for w in laws if learns_from(o, p, w)]
    found = [Distillation(s, *way) for s in chain.selectivity for way in ways]
    for x in (*objectives, *prefixes, *laws):
        if not any(x in way for way in ways):
            what = "mle is taken on the teacher's rows alone (on the truth's it is the direct student), "
            what += "a policy_gradient on the student's alone"
            if any(w != DENSE for w in laws):
                what = "a kept teacher_law is of rows drawn before the fit, and mle, a policy_gradient and the "
                what += "student's own rows take the dense one"
            raise SpecError(what, got=x.to_json(), fix="name a loss, or a source of rows, that suits it")
    for i, d in enumerate(found):
        if d in found[:i]:
            raise SpecError("a way to distil is listed twice", got=d.label, fix="name each loss once")
    return tuple(found)
