"""How a flow chain is specified."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.family import CheapChain, RowCounts, Strict
from hydrometer.models.mixture.spec import MixtureTruth

__all__ = ["FlowChain", "FlowData", "FlowLevel"]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class FlowLevel(Strict):
    """A fitted level: a flow of zuko, by zuko's own parameters, and how it is fitted by Adam.

    Attributes
    ----------
    flow : "nsf", neural spline flow (Durkan et al. 2019); "maf", masked autoregressive flow (Papamakarios et al. 2017).
    transforms : autoregressive transformations, in alternating order.
    hidden_features : widths of each transformation's network.
    bins : of the splines; nsf only.
    epochs, batch_size, learning_rate : of Adam; a last batch that is not full is left out, another epoch has its rows.
    """

    flow: Literal["nsf", "maf"] = "nsf"
    transforms: int = Field(default=3, ge=1)
    hidden_features: Annotated[tuple[int, ...], BeforeValidator(_tuple)] = (64, 64)
    bins: int = Field(default=8, ge=2)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)


class FlowData(RowCounts):
    """Rows per stream. With `validate` rows, a fit keeps the epoch that they like best."""

    model_config: ClassVar[ConfigDict] = ConfigDict(serialize_by_alias=True)  # written as it is read: `validate`

    validate_: int = Field(default=0, ge=0, alias="validate")


class FlowChain(CheapChain):
    """truth (a mixture) -> teacher (a flow) -> student (a flow), selected by latent temperature."""

    family: Literal["flow"]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: no one can assign)
    truth: MixtureTruth
    teacher: FlowLevel
    student: FlowLevel
    data: FlowData = FlowData()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        for s in (*self.selectivity, *(self.decoding or ())):
            if set(s.to_json()) != {"temperature"}:
                raise PydanticCustomError("kind", "a flow is selected by temperature alone, not by {s}", {"s": s.label})
        levels = {"teacher": (self.teacher, self.data.train), "student": (self.student, self._student_rows())}
        for name, (level, rows) in levels.items():
            if level.batch_size > rows:
                message = "{name}.batch_size is {b}, more than the {n} rows it is fitted to; lower it or raise data"
                raise PydanticCustomError("size", message, {"name": name, "b": level.batch_size, "n": rows})
        return self

    def _student_rows(self) -> int:
        return min(self.data.train, self.data.distill)
