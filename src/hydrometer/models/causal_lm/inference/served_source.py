"""A model's source as a specification names it, opened here or served elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from hydrometer.core.errors import ModelError
from hydrometer.models.causal_lm.engines.served_model import Served, ServedModel
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.only_tokenizer import open_tokenizer, resolve_tokenizer

__all__ = ["ServedConfig", "ServedSource", "find_source", "locate_source", "served_outline"]


class ServedConfig(PretrainedConfig):
    """In the place of the configuration of a network that is not at hand: how many ids its tokenizer knows."""

    model_type = "served"


@dataclass(frozen=True, slots=True)
class ServedSource(load.Resolved):
    """A served model; `path` and `revision` are its tokenizer's.

    Attributes
    ----------
    served : where, and by which name.
    tokenizer : its tokenizer, as it was found.
    """

    served: ServedModel | None = None
    tokenizer: load.Resolved | None = None


def find_source(source: str | Served, revision: str | None = None, *, base: str | None = None) -> load.Resolved:
    """Find a model as `load.resolve` does, or the tokenizer of one that is served; no server is asked.

    Raises
    ------
    ModelError, MissingDependencyError : see `load.resolve`.
    """
    if isinstance(source, str):
        return load.resolve(source, revision, base=base)
    _refuse_revision(revision)
    served = source.served
    t = resolve_tokenizer(served.tokenizer)
    identity = {"kind": "served", "model": served.model, **{f"tokenizer_{k}": v for k, v in t.identity.items()}}
    return ServedSource(t.path, t.revision, identity, f"{served.model}, served", served=served, tokenizer=t)


def locate_source(source: str | Served, revision: str | None = None) -> None:
    """Refuse a missing or unsafe source as `load.locate` does, and a tokenizer that cannot be used."""
    if isinstance(source, str):
        load.locate(source)
    else:
        _refuse_revision(revision)
        resolve_tokenizer(source.served.tokenizer)


def _refuse_revision(revision: str | None) -> None:
    if revision is not None:
        raise ModelError("a served model has no revision", got=revision, fix="leave it out: the server chose it")


def served_outline(source: ServedSource) -> load.Outline:
    """Open the tokenizer of a served model. Raises ModelError."""
    if source.tokenizer is None:
        raise TypeError("not a served source")
    tokenizer, generation = open_tokenizer(source.tokenizer)
    sizes: dict[str, Any] = {"vocab_size": max(tokenizer.get_vocab().values()) + 1}
    return load.Outline(ServedConfig(**sizes), tokenizer, generation)
