"""A tokenizer, found and opened without the weights that may lie beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import ModelError
from hydrometer.core.io.yaml_io import user_path
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

__all__ = ["open_tokenizer", "resolve_tokenizer"]


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
