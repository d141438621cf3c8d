"""Helpers for reading a model's files: cached hashes, silenced logging, and errors of one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING

from hydrometer.core.errors import DataError, HydrometerError, ModelError, one_line
from hydrometer.core.io.files import file_digest
from hydrometer.core.io.os_errors import is_panic
from hydrometer.core.watching import doing

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["ADAPTER_CONFIG", "Outline", "Resolved", "as_data_error", "as_model_error", "quiet", "sha256"]

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


def sha256(file: Path) -> str:
    """Hash of a file's bytes, cached by size and modification time."""
    stat = file.stat()
    return _sha256_of(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: str, size: int, mtime_ns: int) -> str:
    if size >= 2**26:
        doing(f"reading {Path(path).name}")
    return file_digest(Path(path))


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence transformers' progress bars and logs, which may quote a model's own text; errors still raise."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def as_model_error(source: str, fix: str = "check that transformers opens it") -> Generator[None]:
    """Turn transformers' errors about a source into one line. Raises ModelError."""
    with _told(lambda said: ModelError(f"the model cannot be opened: {said}", got=source, fix=fix)), quiet():
        yield


@contextlib.contextmanager
def as_data_error(what: str, got: object = ...) -> Generator[None]:
    """Turn a tokenizer's errors into one line that begins with `what`. Raises DataError."""
    with _told(lambda said: DataError(f"{what}: {said}", got=got)):
        yield


@contextlib.contextmanager
def _told(error: Callable[[str], HydrometerError]) -> Generator[None]:
    try:
        yield
    except (HydrometerError, MemoryError):
        raise
    except BaseException as e:  # libraries raise errors without a common base on malformed files
        if not (isinstance(e, Exception) or is_panic(e)):
            raise
        raise error(one_line(str(e), 200) or type(e).__name__) from e
