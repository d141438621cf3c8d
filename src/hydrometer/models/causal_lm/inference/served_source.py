"""A model's source as a specification names it, opened here or served elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from hydrometer.core.errors import ModelError
from hydrometer.core.io.yaml_io import user_path
from hydrometer.models.causal_lm.engines.served_model import Served, ServedModel
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.checkpoint_safety import FILES, check_files
from hydrometer.models.causal_lm.loading.load import (
    ALIASES,
    TOKENIZER_FILES,
    Resolved,
    generation_config,
    hash_of,
    outline,
    resolve,
)
from hydrometer.models.causal_lm.loading.model_files import as_model_error

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

__all__ = [
    "ServedConfig",
    "ServedSource",
    "find_source",
    "locate_source",
    "open_tokenizer",
    "resolve_tokenizer",
    "served_outline",
]


def resolve_tokenizer(source: str) -> Resolved:
    """Find a tokenizer by alias, folder, GGUF file or hub id; its identity is that of its files alone in a folder.

    Raises
    ------
    ModelError : no tokenizer found, or none that is safe to open.
    """
    path = user_path(source)
    if source in ALIASES or not path.is_dir():
        return resolve(source)
    check_files({name: path / name for name in FILES if (path / name).is_file()}, source)
    if not any(f.is_file() for f in path.glob("tokenizer*")):
        fix = "give a folder that tokenizer.save_pretrained wrote"
        raise ModelError("the folder holds no tokenizer", got=source, fix=fix)
    return Resolved(str(path), None, {"kind": "tokenizer", "sha256": hash_of(path, TOKENIZER_FILES)}, path.name)


def open_tokenizer(resolved: Resolved) -> tuple[PreTrainedTokenizerBase, GenerationConfig]:
    """Read a tokenizer, and the generation config beside it. Raises ModelError."""
    from transformers import AutoTokenizer

    if resolved.base is not None:
        found = outline(resolved)
        return found.tokenizer, found.generation_config
    at: dict[str, Any] = {"revision": resolved.revision} if resolved.revision else {}
    with as_model_error(resolved.path):
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False, **at)
    if len(tokenizer) == 0:
        raise ModelError("the tokenizer knows no token", got=resolved.path, fix="fetch the model again")
    return tokenizer, generation_config(resolved)


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
