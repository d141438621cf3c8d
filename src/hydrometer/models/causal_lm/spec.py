"""Specification of a causal-LM chain. Imports without torch and transformers.

Architecture fields have the names and meanings of transformers' `PretrainedConfig`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hydrometer.core.distillation import MLE, Objective, Prefixes, TeacherLaw, distillations_of
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.spec import MAX_LEVELS, MAX_ROWS, ChainSpec, Selectivities, Strict
from hydrometer.models.base import Level, chain_levels
from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings, as_tuple
from hydrometer.models.causal_lm.engines.registry import ENGINE_SCHEMA, engine_named, read_engine
from hydrometer.models.causal_lm.engines.served_model import Served
from hydrometer.models.causal_lm.level_spec import Baseline, LevelSpec, level_spec, tagged
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.causal_lm.truth_spec import FromSource, GivenSource, PromptsFile, Truth
from hydrometer.models.finite_selectivity import NO_TILT
from hydrometer.models.fit_capabilities import Budget
from hydrometer.models.objectives import (
    check_prefixes,
    check_teacher_law,
    divergence_of,
    refuse_infinite,
    refuse_unkept,
)

__all__ = [
    "CausalLMChain",
    "Data",
    "FromSource",
    "GivenSource",
    "PromptsFile",
    "Training",
    "Truth",
    "causal_chain",
]


def _trained_from(value: object) -> object:
    """``{source: ..., training: ...}`` is a level that starts from a model; without training it is that model."""
    if isinstance(value, Mapping) and "source" in value and "training" in value:
        known = cast("Mapping[str, object]", value)
        rest = {k: v for k, v in known.items() if k not in ("source", "revision")}
        return rest | {"init": {k: known[k] for k in ("source", "revision") if k in known}}
    return value


_NO_TEACHER = "teacher is `truth`, a model as it is, {source: PATH}, or a level that is fitted"
Teacher = Annotated[
    Annotated[
        Annotated[Literal["truth"], Tag("<name>")]
        | Annotated[GivenSource, Tag("<source>")]
        | Annotated[LevelSpec, Tag("<level>")],
        Discriminator(tagged(LevelSpec, "<level>"), custom_error_type="teacher", custom_error_message=_NO_TEACHER),
    ],
    BeforeValidator(_trained_from),
]


def _named(model: object) -> Mapping[str, Any] | None:
    """Return source and revision of a model as a specification names it, or of what a level starts from."""
    if isinstance(model, LevelSpec):
        model = model.init
    if isinstance(model, FromSource):
        return model.model_dump()
    if isinstance(model, str):
        return {"source": model} if model != "truth" else None
    known = cast("Mapping[str, Any]", model) if isinstance(model, Mapping) else {}
    is_named = isinstance(known.get("source"), str | Mapping | Served)
    return known if is_named else _named(known["init"]) if "init" in known else None


class Data(Strict):
    """Rows: `train` from the truth, `distill` per selectivity, `validate` beside each of both, `evaluate` per law."""

    model_config: ClassVar[ConfigDict] = ConfigDict(serialize_by_alias=True)

    train: int = Field(default=4096, ge=1, le=MAX_ROWS)
    validate_: int = Field(default=256, ge=1, le=MAX_ROWS, alias="validate")
    distill: int = Field(default=4096, ge=1, le=MAX_ROWS)
    evaluate: int = Field(default=512, ge=2, le=MAX_ROWS)


class CausalLMChain(ChainSpec):
    """A chain of causal language models.

    Parameters
    ----------
    truth, teacher, assistants, student : the levels. `teacher: truth` selects from the truth itself; a teacher that is
        named by its source alone is taken as it is.
    baselines : students fitted to texts of one's own.
    loss : objectives, each with every selectivity; see `models.objectives`.
    prefixes : whose rows the objectives are taken on: the teacher's, the truth's, the student's own, or a mix.
    teacher_law : what of the teacher's law the objectives see: all of it, or what is kept of it along the rows.
    budget : what fits by each way have in common with `mle` on the teacher's rows.
    data : rows per stream.
    draw_dtype : arithmetic of rows drawn for training.
    judge_dtype : arithmetic in which evaluation rows are drawn and scored.
    block_rows : rows drawn together, part of a draw's identity.
    threads : of torch, part of the numerics; None takes the machine's count.
    device : "cpu", "cuda", or "auto", which takes cuda where there is one.
    engine : what draws training rows, by name with its settings; None for this package's own sampler (`native`).
    picture : projection of the first seed's answers from the truth's embedding space to the plane; None for none.
    judge_training_prompts : judge on prompts that the models are trained on, too, beside those kept apart.
    warm_start : distilled students go on from the direct student's weights instead of their `init`.
    """

    family: Literal["causal_lm"] = "causal_lm"  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    truth: Truth
    teacher: Teacher
    assistants: Annotated[tuple[LevelSpec, ...], Field(max_length=MAX_LEVELS), BeforeValidator(as_tuple)] = ()
    student: LevelSpec
    baselines: Annotated[tuple[Baseline, ...], Field(max_length=MAX_LEVELS), BeforeValidator(as_tuple)] = ()
    loss: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuple)] = ("mle",)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    prefixes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuple)] = (
        "teacher",
    )
    budget: Budget = "epochs"
    teacher_law: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuple)] = (
        "dense",
    )
    data: Data = Data()
    draw_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    judge_dtype: Literal["float32", "bfloat16"] = "float32"
    block_rows: int = Field(default=128, ge=1, le=65536)
    threads: int | None = Field(default=None, ge=1, le=4096)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    engine: Annotated[
        dict[str, SerializeAsAny[EngineSettings]] | None, BeforeValidator(read_engine), WithJsonSchema(ENGINE_SCHEMA)
    ] = None
    picture: Literal["pca", "umap"] | None = None
    judge_training_prompts: bool = False
    warm_start: bool = False

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit defaults, so that specifications from before these fields stay what they are."""
        body: dict[str, Any] = handler(self)
        if not self.judge_training_prompts:
            body.pop("judge_training_prompts", None)
        if not self.warm_start:
            body.pop("warm_start", None)
        if self.prefixes == ("teacher",):
            body.pop("prefixes", None)
        if self.budget == "epochs":
            body.pop("budget", None)
        if self.teacher_law == ("dense",):
            body.pop("teacher_law", None)
        if not self.baselines:
            body.pop("baselines", None)
        return body

    @field_validator("selectivity", "decoding")
    @classmethod
    def _token_selectivities(cls, value: Selectivities | None) -> Selectivities | None:
        for s in value or ():
            if s.tilt is not None:
                raise PydanticCustomError("selectivity", "{no}; got {s}", {"no": NO_TILT, "s": s.label})
            if not (s.is_token or s.chooses) or (s.candidates is not None and not s.candidates.is_token):
                raise PydanticCustomError(
                    "selectivity",
                    "a language model is selected by temperature, top_k, top_p, min_p, not by {s}",
                    {"s": s.label},
                )
        return value

    @field_validator("loss")
    @classmethod
    def _known_objectives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            found = [Objective.from_json(v) for v in value]
            for o in found:
                divergence_of(o)
        except SpecError as e:
            raise PydanticCustomError("loss", "{problem}", {"problem": str(e)}) from None
        return tuple(o.to_json() for o in found)

    @field_validator("prefixes")
    @classmethod
    def _known_prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_prefixes(v).to_json() for v in value)
        except SpecError as e:
            raise PydanticCustomError("prefixes", "{problem}", {"problem": str(e)}) from None

    @field_validator("teacher_law")
    @classmethod
    def _known_laws(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(check_teacher_law(v).to_json() for v in value)
        except SpecError as e:
            raise PydanticCustomError("teacher_law", "{problem}", {"problem": str(e)}) from None

    @model_validator(mode="after")
    def _finite_objectives(self) -> Self:
        try:
            for o in map(Objective.from_json, self.loss):
                for s in self.selectivity:
                    refuse_infinite(o, s)
                    for law in map(TeacherLaw.from_json, self.teacher_law):
                        refuse_unkept(o, law, s)
                    for level in (*self.assistants, self.student):
                        named = level.training.metric_for_best_model
                        if named is not None and o != MLE:
                            refuse_infinite(figure := Objective.from_json(named), s)
                            for law in map(TeacherLaw.from_json, self.teacher_law):
                                refuse_unkept(figure, law, s)
            distillations_of(self)
        except SpecError as e:
            raise PydanticCustomError("loss", "{problem}", {"problem": str(e)}) from None
        return self

    @model_validator(mode="after")
    def _levels_allow_own_rows(self) -> Self:
        try:
            for every in (p.every for p in map(Prefixes.from_json, self.prefixes) if p.own):
                for level in (*self.assistants, self.student):
                    level.training.check_own_rows(every)
        except SpecError as e:
            raise PydanticCustomError("prefixes", "{problem}", {"problem": str(e)}) from None
        return self

    @model_validator(mode="after")
    def _tokens_of_one_process(self) -> Self:
        if self.budget == "tokens" and any(x.training.num_workers > 1 for x in (*self.assistants, self.student)):
            raise PydanticCustomError("budget", "budget: tokens needs fits of one process, num_workers: 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _reference_gives_the_tokenizer(cls, data: object) -> object:
        """Beside a text, `truth.source` is the reference's: the teacher's, unless another is named."""
        if not isinstance(data, Mapping):
            return data
        chain = cast("Mapping[str, Any]", data)
        truth = chain.get("truth")
        if isinstance(truth, Truth):
            truth = {k: getattr(truth, k) for k in truth.model_fields_set}
        if not isinstance(truth, Mapping) or truth.get("text") is None or truth.get("source"):
            return chain
        reference = truth.get("reference") or "teacher"
        found = _named(chain.get("teacher") if reference == "teacher" else reference)
        if found is None:
            raise PydanticCustomError(
                "reference", "beside a text the teacher is a model, {source: PATH}, or truth.reference names one"
            )
        given = {k: found[k] for k in ("source", "revision") if found.get(k) is not None}
        return {**chain, "truth": {"reference": "teacher", **truth, **given}}

    @model_validator(mode="after")
    def _teacher_beside_a_text(self) -> Self:
        if self.truth.text is not None and self.teacher == "truth":
            raise PydanticCustomError("teacher", "a text draws nothing: name a model, teacher: {source: PATH}")
        return self

    @model_validator(mode="after")
    def _prompts_kept_apart(self) -> Self:
        if self.judge_training_prompts and self.truth.evaluate is None:
            raise PydanticCustomError(
                "judge_training_prompts", "judge_training_prompts needs prompts kept for judging: prompts.evaluate: 0.2"
            )
        return self

    @model_validator(mode="after")
    def _adapters_over_their_own_base(self) -> Self:
        if self.warm_start and any(level.training.lora is not None for level in (*self.assistants, self.student)):
            raise PydanticCustomError(
                "warm_start", "warm_start has no base that an adapter could be opened over: leave lora out"
            )
        return self

    @field_validator("baselines")
    @classmethod
    def _distinct(cls, value: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        names = [b.name.lower() for b in value]  # files and links bear them, also where case says nothing
        if len(set(names)) < len(names):
            raise PydanticCustomError("baselines", "two baselines have one name, but for its case")
        return value

    @property
    def given_teacher(self) -> GivenSource | None:
        """The teacher where it is a model as it is, and not the truth itself."""
        t = self.teacher
        same = (self.truth.source, self.truth.revision) if self.truth.text is None else None
        return t if isinstance(t, GivenSource) and (t.source, t.revision) != same else None

    @property
    def served_roles(self) -> frozenset[str]:
        """Truth, or the reference beside a text, and teacher, as far as they are served."""
        found = {"truth"} if self.truth.is_served else set[str]()
        return frozenset(found | ({"teacher"} if self.given_teacher and self.given_teacher.is_served else set[str]()))

    @property
    def levels(self) -> tuple[Level, ...]:
        """Fitted levels: teacher, unless it is taken as it is; assistants; student."""
        teacher = self.teacher if isinstance(self.teacher, LevelSpec) else "truth"
        return chain_levels(teacher, self.assistants, self.student)

    @property
    def level_specs(self) -> dict[str, LevelSpec]:
        """Parameters of the fitted levels by role, in order."""
        return {level.role: level_spec(level.spec) for level in self.levels}

    @property
    def drawing(self) -> tuple[Engine, EngineSettings] | None:
        """The engine of training rows and its settings, or None for the native sampler."""
        for name, settings in (self.engine or {}).items():
            return engine_named(name), settings
        return None

    @property
    def n_threads(self) -> int:
        """Threads of torch: those of the specification, else the machine's."""
        return self.threads or os.cpu_count() or 1


def causal_chain(chain: ChainSpec) -> CausalLMChain:
    """Return a chain as this family's. Raises InputError."""
    if not isinstance(chain, CausalLMChain):
        raise InputError("not a causal_lm chain", got=type(chain).__name__)
    return chain
