"""Models that exist: what is known of one before its weights are opened.

Models of one vocabulary share the ids of their prompts and their stop set, those of the first of them; a model of
another vocabulary has prompts and a stop set of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import DataError, MissingDependencyError, ModelError
from hydrometer.core.io.yaml_io import read_json
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.data.prompts import Prompts, prompts_written
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.truth_spec import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Existing", "Own", "find_model"]

LAW_FILE = "law.json"
MAX_LAW_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Own:
    """What a model fitted by this package brings along: what it was asked, and where its answers end."""

    prompts: Prompts
    stop_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Existing:
    """A model that was found.

    Attributes
    ----------
    source : as the caller named it.
    resolved : where and what it is.
    tokenizer : its tokenizer.
    vocabulary : hash of every token with its id.
    stop_ids : its own stop set.
    size : parameters, roughly, for time-left estimates.
    has_template : whether its tokenizer has a chat template.
    room : positions that the network has, or None where its config does not say.
    own : what it brings along, or None.
    caveat : where its tokenizer is not that of its tokenizer.json, in a line.
    """

    source: str
    resolved: load.Resolved
    tokenizer: PreTrainedTokenizerBase
    vocabulary: str
    stop_ids: tuple[int, ...]
    size: float
    has_template: bool
    room: int | None
    own: Own | None
    caveat: str | None = None


def _size(source: str, config: Any, name: str) -> float:
    value: object = getattr(config, name, 1)
    if not isinstance(value, int | float):  # older releases of transformers take anything
        raise ModelError(f"{name} in the config of {source} is no number", got=value, fix="correct its config.json")
    return float(value)


def find_model(source: str, base: str | None = None) -> Existing:
    """Find a model by alias, folder, adapter folder, GGUF file or hub id; no weights are opened but a GGUF file's.

    Raises
    ------
    ModelError, MissingDependencyError : see `load.resolve`.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        what = "causal language models need torch and transformers"
        raise MissingDependencyError(what, fix="pip install 'hydrometer[lm]'")
    from hydrometer.models.causal_lm.data.tokenizer_file import difference
    from hydrometer.models.causal_lm.inference.opened import model_stop_ids, vocabulary_hash

    resolved = load.resolve(source, base=base)
    load.dequantised(resolved.base or resolved)  # a file that cannot be read is refused before anything is made
    doing(f"opening the tokenizer of {source}")
    found = load.outline(resolved)
    config: Any = found.config.get_text_config()
    width, layers, words = (_size(source, config, k) for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    size = 12.0 * layers * width**2 + words * width
    stop_ids = model_stop_ids(found.generation_config, found.tokenizer)
    ids_known = max(found.tokenizer.get_vocab().values()) + 1
    differs = difference(resolved, found.tokenizer)
    own = _own(Path(resolved.path), ids_known) if resolved.revision is None else None
    room: object = getattr(config, "max_position_embeddings", None)
    return Existing(
        source, resolved, found.tokenizer, vocabulary_hash(found.tokenizer), stop_ids, size,
        bool(found.tokenizer.chat_template),
        room if isinstance(room, int) else None, own, None if differs is None else differs.what,
    )  # fmt: skip


def _own(folder: Path, ids_known: int) -> Own | None:
    path = folder / LAW_FILE
    if not path.is_file():
        return None
    try:
        parts = read_json(path, MAX_LAW_BYTES)
        ids = tuple(tuple(int(t) for t in p) for p in parts["prompt_ids"])
        prompts = Prompts(ids, tuple(str(t) for t in parts["prompt_texts"]), written=prompts_written(parts))
        stop_ids, longest = tuple(int(t) for t in parts["stop_ids"]), int(parts["max_new_tokens"])
        if not all(0 <= t < ids_known for p in (*ids, stop_ids) for t in p):
            raise ValueError("it names ids that the tokenizer does not know")
        if not 1 <= longest <= MAX_NEW_TOKENS:
            raise ValueError(f"max_new_tokens is not from 1 to {MAX_NEW_TOKENS}")
        return Own(prompts, stop_ids, longest)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, DataError) as e:
        fix = "remove it, or copy the model's folder again"
        raise ModelError(f"{LAW_FILE} beside the model cannot be read: {e}", got=str(folder), fix=fix) from None
