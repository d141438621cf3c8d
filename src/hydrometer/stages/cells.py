"""Cells: the judged models of a run, by where they stand in their chain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from hydrometer.core.distillation import DENSE, MLE, Distillation
from hydrometer.core.spec import Selectivity
from hydrometer.models.finite_selectivity import canonical

__all__ = ["Cell", "Place"]

ABSENT = (
    "rows chosen among candidates have no log-probability that can be computed: precision, texts and cost are known, "
    "entropy, recall and both KLs are not"
)
ABSENT_SERVED = (
    "a served model draws under a selectivity, and scores rows without one alone: precision, texts and a bound of the "
    "entropy are known, entropy, recall and KLs are not"
)


_SHORT_NAMES = {"temperature": "t", "topp": "p", "topk": "k"}
_SHORT = re.compile(rf"(?<![a-z])({'|'.join(_SHORT_NAMES)})(?=\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a judged model stands in its chain, whatever the seed. Fields as in results.json (docs, Schema).

    Attributes
    ----------
    distillation : of a distilled model; None of all others.
    baseline : name of the run's own model fitted to a text; None of all others.
    teacher_cell : of the selected teacher that a distilled model learned from.
    """

    level: int
    role: str
    training: Literal["direct", "distilled", "baseline"] | None = None
    distillation: Distillation | None = None
    baseline: str | None = None
    decoding: Selectivity | None = None
    parent: str | None = None
    teacher_cell: str | None = None
    point: Mapping[str, float] | None = None
    origin: Mapping[str, object] | None = None

    @property
    def name(self) -> str:
        """What its group is called within the chain."""
        parts = [self.role]
        if self.training is not None:
            own = self.baseline if self.distillation is None else self.distillation.slug
            parts.append(self.training if own is None else f"{self.training}-{own}")
        if self.origin is not None:
            parts.append(f"adopted-{self.origin['adopted']}")
        if self.decoding is not None:
            parts.append(f"decoded-{self.decoding.slug}")
        return ".".join(parts)

    @property
    def selectivity(self) -> Selectivity | None:
        """Of the teacher, where the model was distilled."""
        return None if self.distillation is None else self.distillation.selectivity

    @property
    def is_selected_teacher(self) -> bool:
        """Whether the model is judged as a teacher: decoded as it draws the rows of the level below."""
        if self.decoding is None or self.training in ("direct", "baseline"):
            return False
        return self.training is None or canonical(self.selectivity) is not None

    @property
    def prefix_source(self) -> str | None:
        """Whose rows the model was fitted to; None of a truth and of a selected teacher, and of a map's teacher."""
        if self.is_selected_teacher or self.role == "truth" or (self.training is None and self.point is not None):
            return None
        if self.training == "baseline":
            return "text"
        return "truth" if self.distillation is None else self.distillation.prefixes.to_json()

    @property
    def loss(self) -> str | None:
        """The objective of a student; None of a truth or a teacher, and where nothing is known of one adopted."""
        if self.training is None or self.is_selected_teacher:
            return None
        objective = MLE if self.distillation is None else self.distillation.objective
        return None if self.origin is not None and objective == MLE else objective.to_json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Place):
    """One judged model of a run, before it has figures. Fields as in results.json (docs, Schema).

    Attributes
    ----------
    judge, judge_training : keys of the stages that judge it, and that judge it on prompts of training.
    unscored : whether the model draws so decoded, and scores as it is alone.
    """

    id: str
    group: str
    chain: str
    seed: int | None
    judge: str
    judge_training: str | None = None
    show: str | None = None
    released: str | None = None
    unscored: bool = False

    @classmethod
    def at(cls, place: Place, **own: Any) -> Self:
        """Return the cell of a model that stands there; `own` are the fields that a place does not have."""
        return cls(**{f.name: getattr(place, f.name) for f in fields(Place)}, **own)

    def model_name(self, *, with_chain: bool = False) -> str:
        """What the model is called in its run, decoded or not; for file names, never parsed back.

        Parameters
        ----------
        with_chain : whether the run has several chains.

        Examples
        --------
        >>> d = Distillation(Selectivity(temperature=0.7))
        >>> place = Place(level=2, role="student", training="distilled", distillation=d)
        >>> Cell.at(place, id="", group="", chain="lm", seed=0, judge="").model_name()
        'distilled-t0.7-seed0'
        """
        parts = [] if self.origin is None else [f"adopted-{self.origin['adopted']}"]
        parts += [self.role] if self.role != "student" else []
        parts += [self.training] if self.training is not None else []
        parts += [self.baseline] if self.baseline is not None else []
        if self.distillation is not None:
            parts.append(_SHORT.sub(lambda found: _SHORT_NAMES[found[0]], self.distillation.slug))
        parts += [f"seed{self.seed}"] if self.seed is not None else []
        return (f"{self.chain}." if with_chain else "") + "-".join(parts)

    def called(self, *, with_chain: bool = False) -> str:
        """What people are told that the cell is: its model's name in the run, and the decoding in the tables' words.

        Of a map, whose models have no names, the group's id.

        Examples
        --------
        >>> place = Place(level=1, role="student", training="direct", decoding=Selectivity(temperature=0.7))
        >>> Cell.at(place, id="", group="", chain="lm", seed=0, judge="").called()
        'direct-seed0, decoded at temperature 0.7'
        """
        if self.point is not None:
            return self.group
        how = (
            "" if self.decoding is None else f"{', decoded' if self.role == 'student' else ''} at {self.decoding.label}"
        )
        return self.model_name(with_chain=with_chain) + how

    @property
    def on_training(self) -> Cell | None:
        """The same model judged on prompts of training, where it is."""
        key = self.judge_training
        if key is None:
            return None
        return replace(self, id=f"{self.id} on training prompts", judge=key, judge_training=None, teacher_cell=None)

    @property
    def absence(self) -> dict[str, str]:
        """Why figures that other cells have are absent, where they are; as results.json holds it."""
        if self.decoding is not None and self.decoding.chooses:
            return {"absent": ABSENT}
        return {"absent": ABSENT_SERVED} if self.unscored else {}

    def record(
        self,
        metrics: Mapping[str, object] | None,
        reason: str | None,
        seconds: float,
        artifacts: Mapping[str, object],
    ) -> dict[str, object]:
        """Return the cell as results.json holds it; without figures it failed, for a reason."""
        where: dict[str, object] = {} if self.point is None else {"point": dict(self.point)}
        where |= {} if self.baseline is None else {"baseline": self.baseline}
        if self.distillation is not None and self.distillation.teacher_law != DENSE and self.loss is not None:
            where["teacher_law"] = self.distillation.teacher_law.to_json()
        where |= {} if self.origin is None else {"origin": dict(self.origin)}
        return {
            "id": self.id,
            "group": self.group,
            "chain": self.chain,
            "level": self.level,
            "role": self.role,
            "training": self.training,
            "parent": self.parent,
            "selectivity": None if self.selectivity is None else self.selectivity.to_json(),
            "decoding": None if self.decoding is None else self.decoding.to_json(),
            "prefix_source": self.prefix_source,
            "loss": self.loss,
            "seed": self.seed,
            **where,
            "status": "failed" if metrics is None else "ok",
            "reason": reason,
            "metrics": metrics or {},
            **self.absence,
            "seconds": round(seconds, 3),
            "artifacts": dict(artifacts),
        }
