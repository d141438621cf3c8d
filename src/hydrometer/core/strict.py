"""Strict frozen models, which all parts of a specification are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import SpecError, brief
from hydrometer.core.io.yaml_io import explain, is_array, nearest

__all__ = ["Name", "Strict", "as_tuple", "as_tuples", "check_name"]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest known one."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    if not TYPE_CHECKING:

        def __init__(self, /, *args: object, **fields: object) -> None:
            if args:
                fix = f"its fields are {', '.join(type(self).model_fields)}"
                raise SpecError(f"{type(self).__name__} takes its fields by name", got=args[0], fix=fix)
            try:
                super().__init__(**fields)
            except ValidationError as e:
                raise explain(e, type(self).__name__, fields) from None

        __init__.__pydantic_base_init__ = True  # as in RootModel: validation bypasses it and keeps the key's location

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        known = [f.alias or name for name, f in cls.model_fields.items()]
        for key in cast("dict[object, object]", data) if isinstance(data, dict) else ():
            if key not in known:
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {key}; {hint}",
                    {"key": brief(key), "hint": cls._hint(key if isinstance(key, str) else "", known)},
                )
        return cast("object", data)

    @classmethod
    def _hint(cls, key: str, known: list[str]) -> str:
        return nearest(key, known)


def check_name(value: str) -> str:
    """Return a name. Raises PydanticCustomError for anything else."""
    if not value or len(value) > 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in value):
        raise PydanticCustomError("name", "a name is 1 to 64 of the characters a-z A-Z 0-9 _ -")
    if value[0] in "_-":
        raise PydanticCustomError("name", "a name starts with a letter or a digit")
    return value


Name = Annotated[str, AfterValidator(check_name)]


def as_tuple(value: object) -> object:
    """Return a list as a tuple and anything else as it is: what pydantic validates for a frozen model."""
    return tuple(value) if is_array(value) else value


def as_tuples(value: object) -> object:
    """Return nested lists as nested tuples.

    Examples
    --------
    >>> as_tuples([[1, 2], 3])
    ((1, 2), 3)
    """
    return tuple(as_tuples(v) for v in value) if is_array(value) else value
