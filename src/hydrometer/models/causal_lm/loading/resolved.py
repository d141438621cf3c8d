"""Results of `load`: a located model, and a model without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["ADAPTER_CONFIG", "Outline", "Resolved"]

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A located source.

    Attributes
    ----------
    path : local folder, or hub id; for a GGUF file a folder in the cache, with weights once they were needed.
    revision : of a hub id.
    identity : hash of the content; JSON-able, for keys.
    description : one line for people.
    base : an adapter's base model; `path` is then the adapter's folder.
    gguf : the GGUF file with its weights, or None.
    """

    path: str
    revision: str | None
    identity: Mapping[str, str]
    description: str
    base: Resolved | None = None
    gguf: Path | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its weights.

    Attributes
    ----------
    generation_config : of generation_config.json; without an end of sequence there, that of config.json.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation_config: GenerationConfig
