"""Pretrained models: what is known before the weights are opened.

Models of one vocabulary share the ids of their prompts and their stop set, those of the first of them; a model of
another vocabulary has prompts and a stop set of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import ModelError
from hydrometer.core.io.yaml_io import read_json
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.data.law_file import LAW_FILE, LawFile
from hydrometer.models.causal_lm.engines.served_model import Served, source_of
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.libraries import needs_torch
from hydrometer.models.causal_lm.truth_spec import MAX_NEW_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Existing", "find_model"]

MAX_LAW_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Existing:
    """A model that was located.

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
    own : its law.json, if this package fitted it, or None.
    caveat : one line, if its tokenizer differs from its tokenizer.json.
    served : where it is served, or None for one that is opened.
    """

    source: str
    resolved: load.Resolved
    tokenizer: PreTrainedTokenizerBase
    vocabulary: str
    stop_ids: tuple[int, ...]
    size: float
    has_template: bool
    room: int | None
    own: LawFile | None
    caveat: str | None = None
    served: Served | None = None


def _size(source: str, config: Any, name: str) -> float:
    value: object = getattr(config, name, 1)
    if not isinstance(value, int | float):  # older releases of transformers take anything
        raise ModelError(f"{name} in the config of {source} is no number", got=value, fix="correct its config.json")
    return float(value)


def find_model(source: str, base: str | None = None) -> Existing:
    """Find a model by alias, folder, adapter folder, GGUF file or hub id; no weights are opened but a GGUF file's.

    A YAML file ``served: {base_url: ..., model: ..., tokenizer: ...}`` names a served one, which is not asked.

    Raises
    ------
    ModelError, MissingDependencyError : see `load.resolve`.
    """
    needs_torch()
    from hydrometer.models.causal_lm.data.tokenizer_file import difference
    from hydrometer.models.causal_lm.inference.opened import model_stop_ids, vocabulary_hash
    from hydrometer.models.causal_lm.networks.network import max_positions

    if isinstance(served := source_of(source), Served):
        return _find_served(source, served)
    resolved = load.resolve(source, base=base)
    load.dequantised(resolved.base or resolved)  # refuse an unreadable file early
    doing(f"opening the tokenizer of {source}")
    found = load.outline(resolved)
    config: Any = found.config.get_text_config()
    width, layers, words = (_size(source, config, k) for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    ids_known = max(found.tokenizer.get_vocab().values()) + 1
    differs = difference(resolved, found.tokenizer)
    return Existing(
        source=source,
        resolved=resolved,
        tokenizer=found.tokenizer,
        vocabulary=vocabulary_hash(found.tokenizer),
        stop_ids=model_stop_ids(found.generation_config, found.tokenizer),
        size=12.0 * layers * width**2 + words * width,
        has_template=bool(found.tokenizer.chat_template),
        room=max_positions(config),
        own=_law_file(Path(resolved.path), ids_known) if resolved.revision is None else None,
        caveat=None if differs is None else differs.what,
    )


def _find_served(source: str, served: Served) -> Existing:
    from hydrometer.models.causal_lm.inference.opened import model_stop_ids, vocabulary_hash
    from hydrometer.models.causal_lm.inference.served_source import ServedSource, find_source, served_outline

    resolved = find_source(served)
    assert isinstance(resolved, ServedSource)
    found = served_outline(resolved)
    return Existing(
        source=source,
        resolved=resolved,
        tokenizer=found.tokenizer,
        vocabulary=vocabulary_hash(found.tokenizer),
        stop_ids=model_stop_ids(found.generation_config, found.tokenizer),
        size=0.0,
        has_template=bool(found.tokenizer.chat_template),
        room=None,
        own=None,
        served=served,
    )


def _law_file(folder: Path, ids_known: int) -> LawFile | None:
    """Read the law.json of a model that this package fitted, None where it has none. Raises ModelError."""
    path = folder / LAW_FILE
    if not path.is_file():
        return None
    try:
        found = LawFile.from_json(read_json(path, MAX_LAW_BYTES))
        if not all(0 <= t < ids_known for p in (*found.prompts.ids, found.stop_ids) for t in p):
            raise ValueError("it names ids that the tokenizer does not know")
        if not 1 <= found.max_new_tokens <= MAX_NEW_TOKENS:
            raise ValueError(f"max_new_tokens is not from 1 to {MAX_NEW_TOKENS}")
    except (OSError, ValueError) as e:
        fix = "remove it, or copy the model's folder again"
        raise ModelError(f"{LAW_FILE} beside the model cannot be read: {e}", got=str(folder), fix=fix) from None
    return found
