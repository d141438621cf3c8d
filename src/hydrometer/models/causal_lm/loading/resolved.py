"""What `load` finds and reads of a model."""

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
    """A source that was found.

    Attributes
    ----------
    path : local folder, or hub id; of a GGUF file the folder in the cache, which holds weights once they were wanted.
    revision : of a hub id.
    identity : what it is, by content; JSON-able, for keys.
    description : what it is, for people.
    base : of an adapter, the model that it changes; `path` is then the adapter's folder.
    gguf : the GGUF file whose weights it has.
    """

    path: str
    revision: str | None
    identity: Mapping[str, str]
    description: str
    base: Resolved | None = None
    gguf: Path | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """All of a model but its weights.

    Attributes
    ----------
    generation_config : what generation_config.json says; its end of sequence is that of config.json where it names none
        or is not there.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation_config: GenerationConfig
