"""Models that were trained elsewhere and adopted by a run: their entries in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.distillation import Distillation
from hydrometer.core.errors import FolderError, SpecError
from hydrometer.core.io.files import write_atomic
from hydrometer.core.io.yaml_io import explain, parse_yaml, read_plain
from hydrometer.core.spec import Name, Selectivity, Strict
from hydrometer.models.finite_selectivity import canonical
from hydrometer.store.artifacts import content_key

if TYPE_CHECKING:
    from hydrometer.store.records import RunFolder

__all__ = ["Adopted", "keep_adopted", "read_adopted"]

MAX_ENTRY_BYTES = 100_000


class Adopted(Strict):
    """One model trained elsewhere, in the place of the chain's student.

    Attributes
    ----------
    chain, name : where it belongs, and what it is called; seeds of one name form one group.
    training : what it was trained on: the truth's rows (`direct`), the teacher's (`distilled`), or other data
        (`baseline`).
    selectivity : of the teacher when it drew these; None of others than distilled models.
    loss, prefix_source, teacher_law : the method of the run's students that it stands beside; None for maximum
        likelihood on the teacher's rows, and for its whole law.
    seed : of the run whose rows it was trained on.
    law : key of the artifact that holds its weights, a hash of their content.
    weights : what they are, by content.
    """

    chain: Name
    name: Name
    training: Literal["direct", "distilled", "baseline"]
    selectivity: Selectivity | None = None
    loss: str | None = None
    prefix_source: str | None = None
    teacher_law: str | None = None
    seed: int = Field(ge=0)
    law: str = Field(pattern=r"^[0-9a-f]{32}$")
    weights: dict[str, str]

    @model_validator(mode="after")
    def _where_from(self) -> Self:
        if (self.selectivity is None) != (self.training != "distilled"):
            raise PydanticCustomError(
                "adopted", "a distilled model has a selectivity, a direct one or a baseline has none"
            )
        if self.training != "distilled" and any(self._method):
            raise PydanticCustomError("adopted", "a direct model or a baseline has no loss and no prefix_source")
        return self

    @property
    def place(self) -> tuple[object, ...]:
        """What no two adopted models may share."""
        return self.chain, self.name, self.training, canonical(self.selectivity), *self._method, self.seed

    @property
    def _method(self) -> tuple[str | None, ...]:
        return self.loss, self.prefix_source, self.teacher_law

    def was_distilled(self, d: Distillation | None) -> bool:
        """Whether it was trained as a student of the run was: `d` of a distilled one, None of a direct one."""
        if d is None or self.selectivity is None:
            return d is None and self.selectivity is None
        method = tuple(d.variant.get(k) for k in ("loss", "prefix_source", "teacher_law"))
        return canonical(self.selectivity) == canonical(d.selectivity) and self._method == method

    @property
    def origin(self) -> dict[str, object]:
        """What results.json says of it."""
        return {"adopted": self.name, "weights": dict(self.weights)}


def read_adopted(folder: RunFolder) -> list[Adopted]:
    """Read the folder's entries, in a fixed order. Raises FolderError: an entry that cannot be read."""
    out: list[Adopted] = []
    for path in sorted((folder.root / "adopted").glob("*.yaml")):
        try:
            raw = read_plain(path, MAX_ENTRY_BYTES)
            out.append(Adopted.model_validate(parse_yaml(raw, path.name, MAX_ENTRY_BYTES)))
        except ValidationError as e:
            why = str(explain(e, path.name))
            raise FolderError(f"an entry in adopted/ cannot be used: {why}", fix="remove it, adopt again") from None
        except (OSError, SpecError) as e:
            raise FolderError(f"adopted/{path.name} cannot be read: {e}", fix="remove it, adopt again") from None
    return sorted(out, key=lambda a: (a.chain, a.name, a.training, str(a.selectivity), a.loss or "", a.seed))


def keep_adopted(folder: RunFolder, entry: Adopted) -> Path:
    """Write an entry under its hash."""
    body: dict[str, Any] = entry.model_dump(mode="json", exclude_none=True)
    home = folder.root / "adopted"
    home.mkdir(exist_ok=True)
    path = home / f"{content_key(body)}.yaml"
    write_atomic(path, yaml.safe_dump(body, sort_keys=False))
    return path
