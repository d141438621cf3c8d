"""What is asked and what is true, in a specification: prompts, texts, the truth. Needs no torch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self, cast

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import brief
from hydrometer.core.io.yaml_io import user_path
from hydrometer.core.spec import Strict
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.causal_lm.engines.served_model import Served

__all__ = [
    "MAX_NEW_TOKENS",
    "BaselineText",
    "Dataset",
    "Evaluate",
    "File",
    "FromSource",
    "GivenSource",
    "PromptsFile",
    "TextFile",
    "Truth",
    "as_file",
]

MAX_NEW_TOKENS = 1_000_000


def _tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _source_kind(value: object) -> str | None:
    match value:
        case str():
            return "<name>"
        case Served() | Mapping():
            return "<served>"
        case _:
            return None


_NO_SOURCE = "a source is a folder, a GGUF file, a hub id, an alias, or {served: {base_url: ..., model: ..., ...}}"
_KIND = Discriminator(_source_kind, custom_error_type="source", custom_error_message=_NO_SOURCE)


class FromSource(Strict):
    """Start from another pretrained model of the same vocabulary."""

    source: str = Field(min_length=1)
    revision: str | None = None

    @field_validator("source", mode="before")
    @classmethod
    def _weights_at_hand(cls, value: object) -> object:
        if isinstance(value, Mapping | Served) and cls is FromSource:
            raise PydanticCustomError(
                "init", "a served model has no weights here to start from; name a folder or a hub id, {source: PATH}"
            )
        return value


class GivenSource(FromSource):
    """A model that is taken as it is, by its place or as it is served."""

    source: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
        Annotated[str, Field(min_length=1), Tag("<name>")] | Annotated[Served, Tag("<served>")], _KIND
    ]

    @property
    def is_served(self) -> bool:
        """Whether its weights are elsewhere."""
        return isinstance(self.source, Served)


class Dataset(Strict):
    """A data set that the library datasets opens: a hub id, or local files (JSON, CSV, Parquet, a folder).

    Parameters
    ----------
    path, name, split, revision : of `datasets.load_dataset`; a local path is relative to the specification's folder.
    """

    path: str = Field(min_length=1)
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class File(Strict):
    """A file of a person's data, or a data set; its content goes along to other processes.

    Parameters
    ----------
    file : path, relative to the specification's folder: JSON lines, Parquet or CSV; or
    dataset : a data set.
    columns : what columns are called there, by what they are: ``{prompt: my_question, completion: my_answer}``.
    """

    file: str = ""
    dataset: Dataset | None = None
    columns: dict[Literal["messages", "prompt", "completion", "text"], str] = Field(default_factory=dict)
    _base: Path = PrivateAttr(default_factory=Path.cwd)
    _content: bytes | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the folder that `file` is relative to; it is no part of what the specification says."""
        if isinstance(context, Mapping) and "base" in context:
            self._base = cast("Mapping[str, Path]", context)["base"]

    def __getstate__(self) -> dict[Any, Any]:
        """Take the file's content along to another process, whose machine may not have it."""
        state = super().__getstate__()
        private: dict[str, Any] = dict(state["__pydantic_private__"] or {})
        if private.get("_content") is None and self.dataset is None:
            private["_content"] = self.path.read_bytes()
        return {**state, "__pydantic_private__": private}

    def open(self) -> IO[bytes]:
        """Open the file, or what came along of it."""
        return self.path.open("rb") if self._content is None else io.BytesIO(self._content)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.file) == (self.dataset is not None):
            raise PydanticCustomError("file", "give one of file: PATH and dataset: {path: ID}")
        return self

    @property
    def called(self) -> str:
        """What it is called in messages."""
        return self.file or (self.dataset.path if self.dataset is not None else "")

    @property
    def is_carried(self) -> bool:
        """Whether the content came along, from another machine that read the file."""
        return self._content is not None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.near(self.file)

    def near(self, path: str) -> Path:
        """Return a path relative to the specification's folder."""
        return self._base / user_path(path)


def _evaluate_kind(value: object) -> str | None:
    match value:
        case bool():
            return None
        case int() | float() if 0 < value < 1:
            return "<share>"
        case File() | Mapping():
            return "<file>"
        case _:
            return None


_NO_EVALUATE = "evaluate is a share of the prompts between 0 and 1, or {file: PATH}"
Evaluate = Annotated[
    Annotated[Annotated[float, Field(gt=0, lt=1)], Tag("<share>")] | Annotated[File, Tag("<file>")],
    Discriminator(_evaluate_kind, custom_error_type="evaluate", custom_error_message=_NO_EVALUATE),
]


class PromptsFile(File):
    """A JSONL file of prompts, one a line: ``{"prompt": text}`` or ``{"messages": [{"role", "content"}, ...]}``.

    Parameters
    ----------
    file : path, relative to the specification's folder.
    chat : put every prompt into the tokenizer's chat template, the assistant's turn opened.
    are : "fixed", the experiment's own list, or "sample" of a population that intervals are to cover.
    evaluate : the prompts that models are judged on and none is trained on: a share of the file's, or another file's.
        None trains and judges on the same prompts.
    """

    chat: bool = False
    are: PromptsAre = "fixed"
    evaluate: Evaluate | None = None

    @model_validator(mode="before")
    @classmethod
    def _others_are_a_sample(cls, data: object) -> object:
        """Prompts that nobody was trained on stand for others, unless it is said that they do not."""
        if isinstance(data, Mapping) and data.get("evaluate") is not None and "are" not in data:
            return {**data, "are": "sample"}
        return data


class TextFile(File):
    """Prompts with answers, or whole documents, in the place of a truth: JSON lines or Parquet.

    Parameters
    ----------
    file : path, relative to the specification's folder.
    chat : put every prompt into the tokenizer's chat template. None: messages yes, documents no, prompts where the
        tokenizer has one.
    are : what intervals are for: these prompts, or the population that they are a sample of.
    evaluate : the prompts whose answers models are judged on and none is trained on.
    """

    chat: bool | None = None
    are: PromptsAre = "sample"
    evaluate: Evaluate = 0.2


class BaselineText(File):
    """Prompts with answers, or whole documents, that a baseline is fitted to.

    Parameters
    ----------
    chat : put every prompt into the tokenizer's chat template; None as the truth's prompts are.
    """

    chat: bool | None = None


def as_file(value: object) -> object:
    """Read a file's name as the mapping that it stands for."""
    return {"file": value} if isinstance(value, str) else value


def _reference(value: object) -> object:
    return {"source": value} if isinstance(value, str) and value != "teacher" else value


def _prompts_kind(value: object) -> str | None:
    match value:
        case None:
            return "<begin>"
        case str():
            return "<text>"
        case PromptsFile() | Mapping():
            return "<mapping>"
        case _:
            return None


_NO_PROMPTS = "prompts are null (begin of sequence), a text, or {file: PATH, chat: true|false, are: fixed|sample}"
Prompts = Annotated[
    Annotated[None, Tag("<begin>")] | Annotated[str, Tag("<text>")] | Annotated[PromptsFile, Tag("<mapping>")],
    Discriminator(_prompts_kind, custom_error_type="prompts", custom_error_message=_NO_PROMPTS),
]


class Truth(Strict):
    """The law of level 0: a pretrained model as it is, or texts.

    Parameters
    ----------
    source : alias (``smollm2-135m-instruct``), folder, GGUF file, hub id, or a model that is served. Beside `text` the
        reference's, which gives tokenizer and stop set to all levels.
    revision : branch, tag or commit of a hub id.
    max_new_tokens : L, tokens after which a drawn sequence is cut.
    prompts : what is answered.
    text : prompts with answers in the place of a model. Nothing can be drawn from a text, and it scores nothing.
    reference : with `text`, the model under which precision is measured, by its own name: the teacher, or another.
    stop : E, ids or token strings that end a sequence; None takes the model's own.
    architecture : the model's own config fields, `model_type` among them, for `plan` where the model is not at hand;
        nothing else reads it.
    """

    source: Annotated[Annotated[str, Tag("<name>")] | Annotated[Served, Tag("<served>")], _KIND] = ""
    revision: str | None = None
    max_new_tokens: int = Field(default=64, ge=1, le=MAX_NEW_TOKENS)
    prompts: Prompts = None
    text: Annotated[TextFile, BeforeValidator(as_file)] | None = None
    reference: Annotated[Literal["teacher"] | GivenSource, BeforeValidator(_reference)] | None = None
    stop: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)] | str, ...], BeforeValidator(_tuple)] | None = None
    architecture: dict[str, Any] | None = None
    _kept: object = PrivateAttr(default=None)
    _of_training: tuple[int, ...] | None = PrivateAttr(default=None)

    @property
    def is_served(self) -> bool:
        """Whether the model's weights, the reference's beside a text, are elsewhere."""
        return isinstance(self.source, Served)

    @property
    def model_role(self) -> Literal["truth", "teacher", "reference"]:
        """What the model `source` is to the chain: the truth, or beside a text the teacher or another reference."""
        return "truth" if self.text is None else "teacher" if self.reference == "teacher" else "reference"

    @property
    def kept_prompts(self) -> object:
        """What a run keeps of its prompts (`prompts.Kept`), or None; no part of what the specification says."""
        return self._kept

    def with_kept(self, kept: object) -> Self:
        """Return the same truth, asked what a run keeps; it goes along to other processes."""
        out = self.model_copy()
        out._kept = kept
        return out

    @property
    def of_training(self) -> tuple[int, ...] | None:
        """The prompts of training that models are judged on in the place of those kept apart; no part of a truth."""
        return self._of_training

    def judged_on(self, of_training: tuple[int, ...]) -> Self:
        """Return the same truth, whose models are judged on some of the prompts that they are trained on."""
        out = self.model_copy()
        out._of_training = of_training
        return out

    @property
    def evaluate(self) -> float | File | None:
        """The prompts that models are judged on and none is trained on, where there are such."""
        if self.text is not None:
            return self.text.evaluate
        return self.prompts.evaluate if isinstance(self.prompts, PromptsFile) else None

    @field_validator("prompts")
    @classmethod
    def _no_name_of_a_file(cls, value: object, about: ValidationInfo) -> object:
        if not isinstance(value, str) or not os.path.splitext(value)[1]:
            return value
        base = about.context["base"] if isinstance(about.context, Mapping) and "base" in about.context else Path.cwd()
        is_name = value.lower().endswith((".jsonl", ".json", ".csv", ".parquet")) and len(value.split()) == 1
        if is_name or os.path.isfile(os.path.join(base, user_path(value))):
            what = "prompts is the text {text}; for the file write {file: {name}}"
            raise PydanticCustomError("prompts", what, {"text": brief(value), "name": value})
        return value

    @model_validator(mode="after")
    def _model_or_text(self) -> Self:
        if self.text is None and not self.source:
            raise PydanticCustomError("truth", "the truth is a model, source: PATH, or text: FILE")
        if self.text is None and self.reference is not None:
            raise PydanticCustomError("reference", "a reference goes with text: a model as truth scores by itself")
        if self.text is not None and self.prompts is not None:
            raise PydanticCustomError("prompts", "a text brings its own prompts: leave prompts out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _unselected(cls, data: object) -> object:
        if isinstance(data, Mapping) and "selectivity" in data:
            raise PydanticCustomError(
                "truth_selectivity", "the truth has no selectivity: it is the law all others are judged against"
            )
        return data
