"""What files and models are that a person has: read as a run would read them; no weights are opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydrometer.core.errors import DataError, InputError
from hydrometer.core.io.yaml_io import user_path
from hydrometer.models.causal_lm.data.parts import Part, part_of
from hydrometer.models.causal_lm.data.text_dataset import Column, guessed_columns, read_answers, read_questions
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.libraries import needs_torch
from hydrometer.models.causal_lm.truth_spec import File

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NO_MODEL", "ModelFacts", "TextFacts", "look", "sources_in"]

_TABLES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True, eq=False)
class TextFacts:
    """A file of prompts, with answers or without.

    Attributes
    ----------
    place : the file.
    prompts : its rows, read as prompts.
    answered : its rows, read as texts; None where they have no answers.
    unread : why they have none.
    columns : what its columns are, as they were guessed; empty where their names are read as they are.
    """

    place: Path
    prompts: Part
    answered: Part | None
    unread: str
    columns: dict[Column, str]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """A model without its weights.

    Attributes
    ----------
    source : as it was named.
    layers, parameters : how many.
    limit : most tokens of prompt and answer; None where the config says none.
    tokenizer : None where the model was not opened.
    vocabulary : hash of the tokenizer's.
    """

    source: str
    layers: int
    parameters: int
    limit: int | None
    tokenizer: PreTrainedTokenizerBase | None = None
    vocabulary: str = ""


NO_MODEL = ModelFacts("smollm2-135m-instruct", 30, 134_515_008, 8192)
"""Stands in a specification where no model is given; of the alias in `load.ALIASES`."""


def sources_in(names: Sequence[str]) -> Iterator[str]:
    """Yield what was named; in the place of a folder that is no model, the tables and models in it."""
    for name in names:
        folder = user_path(name)
        if not folder.is_dir() or _is_model(folder):
            yield name
            continue
        found = [p for p in sorted(folder.iterdir()) if p.suffix in (*_TABLES, ".gguf") or _is_model(p)]
        if not found:
            fix = f"name a model, or files ({', '.join(_TABLES)})"
            raise InputError("the folder holds no model and no table", got=name, fix=fix)
        yield from map(str, found)


def look(name: str) -> TextFacts | ModelFacts:
    """Open a table of prompts, or a model's config and tokenizer. Raises InputError."""
    path = user_path(name)
    return _table(path) if path.is_file() and path.suffix != ".gguf" else _model(name)


def _is_model(path: Path) -> bool:
    return any((path / n).is_file() for n in ("config.json", load.ADAPTER_CONFIG))


def _table(path: Path) -> TextFacts:
    file = File(file=str(path.absolute()))
    try:
        rows = read_questions(file, mixed=True)
    except DataError:
        if not (columns := guessed_columns(file)):
            raise
        file = File(file=file.file, columns=columns)
        rows = read_questions(file, mixed=True)
    try:
        answered, unread = part_of(read_answers(file)), ""
    except DataError as e:
        answered, unread = None, e.said
    return TextFacts(path, part_of(rows), answered, unread, file.columns)


def _model(name: str) -> ModelFacts:
    needs_torch()
    from hydrometer.models.causal_lm.cost.operations import shape_of
    from hydrometer.models.causal_lm.inference.opened import vocabulary_hash

    outline = load.outline(load.resolve(name))
    shape, text = shape_of(outline.config), outline.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    vocabulary = vocabulary_hash(outline.tokenizer)
    return ModelFacts(name, shape.layers, shape.parameters, limit, outline.tokenizer, vocabulary)
