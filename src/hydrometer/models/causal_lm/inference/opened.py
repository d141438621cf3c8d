"""An opened network and its tokenizer, run in a way that is right for it; `model.CausalLM` adds laws.

Shapes: V ids the tokenizer knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import InputError, LawMismatchError, ModelError, SpecError
from hydrometer.core.shown import Shown
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.cpu.llama import Llama
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama
from hydrometer.models.causal_lm.data.tokenizer_file import difference
from hydrometer.models.causal_lm.inference.outcome_law import Outcomes
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.model_files import quiet
from hydrometer.models.causal_lm.networks.decoders import Way
from hydrometer.models.causal_lm.networks.hidden_state_cache import HiddenStateCache
from hydrometer.models.causal_lm.networks.network import Network, max_positions, network_errors
from hydrometer.models.causal_lm.networks.running import Running, find_running
from hydrometer.models.rows.sequences import Sequences

__all__ = ["Asked", "OpenedLM", "model_stop_ids", "pick_device", "stop_set", "vocabulary_hash"]

Dtype = Literal["auto", "float32", "bfloat16"]


class Saves(Protocol):
    """What is written beside a model."""

    def save(self, folder: Path) -> None:
        """Write it into the model's folder."""
        ...


class OpenedLM(Shown):
    """A causal language model: network and tokenizer.

    Parameters
    ----------
    model : a transformers causal LM. It is put into evaluation mode.
    tokenizer : its tokenizer.
    source : where the weights can be read again, or None.

    Attributes
    ----------
    vocab_size : V, ids from 0 that the tokenizer knows. A network may have more rows (padded vocabularies); those ids
        do not exist in any law.
    network : the network as body and head.
    running : how the network may be run, by length; computed lazily.
    has_cache : whether keys and values can be cached; else every step runs the whole prefix.
    is_llama : whether `Llama` can run it, or on an accelerator `DeviceLlama`.
    frozen : whether the weights are final; their packed form and hidden states are then cached.
    adapter : what was trained, where the weights hold it merged; written beside them.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, source: load.Resolved | None = None
    ) -> None:
        self.model: PreTrainedModel = model.eval()
        self.tokenizer = tokenizer
        self.source = source
        ids = sorted(tokenizer.get_vocab().values())
        self.vocab_size: int = ids[-1] + 1
        rows = int(getattr(model.config.get_text_config(), "vocab_size"))  # noqa: B009  (set dynamically)
        if rows < self.vocab_size:
            what = "the model has fewer output rows than its tokenizer has ids"
            raise LawMismatchError(what, got=(rows, self.vocab_size), fix="use the model's own tokenizer")
        known = torch.zeros(self.vocab_size, dtype=torch.bool)
        known[ids] = True
        self._vocabulary_hash = vocabulary_hash(tokenizer)
        self.network = Network(self.model, None if bool(known.all()) else (~known).nonzero()[:, 0])
        self.frozen: bool = False
        self.adapter: Saves | None = None
        self._engine: Llama | DeviceLlama | None = None
        self.hidden_states: HiddenStateCache | None = None
        doing("checking how the network runs")
        own: Any = Llama if self.device.type == "cpu" else DeviceLlama
        self.is_llama: bool = self.network.is_split and Llama.recognise(self.model) and own.agrees(self.model)
        if not self.is_llama and not self.has_cache:
            what = f"{type(self.model).__name__} keeps no attention cache that can be extended"
            warnings.warn(f"{what}: every drawn token runs its whole prefix again, which is slow", stacklevel=2)

    def _facts(self) -> dict[str, object]:
        where = "" if self.source is None else self.source.description
        weights = sum(p.numel() for p in self.model.parameters())
        return {"source": where, "network": type(self.model).__name__, "weights": f"{weights:,}"}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        revision: str | None = None,
        base: str | None = None,
    ) -> Self:
        """Open an alias, a folder, a GGUF file, a hub id, or a PEFT adapter's folder, merged into its base.

        Parameters
        ----------
        source : see `load.resolve`.
        dtype : "auto" is float32, whatever the file holds: the float32 law is the model.
        device : "auto" takes cuda where there is one.
        revision : of a hub id.
        base : the model under an adapter, where the adapter does not name an alias or a hub id.

        Raises
        ------
        ModelError, MissingDependencyError

        Warns
        -----
        UserWarning : the tokenizer that transformers opens is not that of the folder's tokenizer.json.
        """
        lm = cls.open(load.resolve(str(source), revision, base=base), dtype=dtype, device=device)
        if lm.source is not None and (found := difference(lm.source, lm.tokenizer)) is not None:
            warnings.warn(found.what, stacklevel=2)
        return lm

    @classmethod
    def open(cls, resolved: load.Resolved, *, dtype: Dtype = "auto", device: str = "auto") -> Self:
        """Open what `load.resolve` found. Raises ModelError."""
        network: Any = load.read_weights(resolved)
        network.to(device=pick_device(device))
        # Computed once in float32 and used so, as by transformers: rotary frequencies among them.
        computed = [(m, n, m._buffers[n]) for m in network.modules() for n in m._non_persistent_buffers_set]
        network.to(dtype=torch_dtype(dtype))
        for module, name, values in computed:
            module._buffers[name] = values
        return cls(network, load.outline(resolved).tokenizer, source=resolved)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model.dtype

    @property
    def n_parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary_hash(self) -> str:
        """Hash of every token with its id, and of which are special."""
        return self._vocabulary_hash

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The model's own stop set."""
        return model_stop_ids(self.model.generation_config, self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write what `from_pretrained` opens: safetensors, config, generation config, tokenizer."""
        for word in ("is_local", "local_files_only"):  # of this process, not of the tokenizer
            self.tokenizer.init_kwargs.pop(word, None)
        with quiet(), network_errors(self.model, "writing the model"):
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        if self.adapter is not None:
            self.adapter.save(Path(folder))

    def float32(self) -> Self:
        """Return the float32 model: itself, or read again from its source, as rounding is not reversible."""
        if self.dtype == torch.float32:
            return self
        if self.source is None:
            what = "only rounded weights are at hand where the float32 ones are needed"
            raise ModelError(what, got=str(self.dtype), fix="open the model in float32")
        network: Any = load.read_weights(self.source)
        return type(self)(network.to(self.device), self.tokenizer, source=self.source)

    # -- how the network is run --------------------------------------------------------------------------------------

    @property
    def engine(self) -> Llama | None:
        """The network as packed matrices, where it is of Llama type and on the CPU.

        Made anew at every call, as weights may have changed, unless `frozen`.
        """
        found = self._made()
        return found if isinstance(found, Llama) else None

    @property
    def on_device(self) -> DeviceLlama | None:
        """The network as stacked matrices on its accelerator, where it is of Llama type; made anew as `engine` is."""
        found = self._made()
        return found if isinstance(found, DeviceLlama) else None

    def _made(self) -> Llama | DeviceLlama | None:
        if not self.is_llama or not Llama.untouched(self.model):
            return None
        make = Llama if self.device.type == "cpu" else DeviceLlama
        if not self.frozen:
            return make(self.model, self.holes)
        if self._engine is None:
            self._engine = make(self.model, self.holes)
        return self._engine

    @cached_property
    def running(self) -> Running:
        """How transformers may run the network. Raises ModelError if no way is right."""
        return find_running(self.network, self.vocab_size)

    @property
    def has_cache(self) -> bool:
        """Whether keys and values can be cached, at least in short rows."""
        return self.running.short == "cached"

    @property
    def is_split(self) -> bool:
        """Whether the network's body returns hidden states; if not, it returns the logits."""
        return self.network.is_split

    @property
    def holes(self) -> Tensor | None:
        """Ids below V that do not exist."""
        return self.network.holes

    @holes.setter
    def holes(self, ids: Tensor | None) -> None:
        self.network.holes = ids


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Asked(Outcomes):
    """An opened model with its prompts, stop set and length: the input of sampler, scorer and embedder.

    Parameters
    ----------
    lm : network and tokenizer. The others are those of `Outcomes`.
    """

    lm: OpenedLM  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError("max_new_tokens must be at least 1", got=self.max_new_tokens)
        if self.block_rows < 1:
            raise InputError("block_rows must be at least 1", got=self.block_rows)
        if any(not 0 <= t < self.lm.vocab_size for t in self.stop_ids):
            raise InputError("stop ids must be ids of the tokenizer", got=self.stop_ids)
        if any(not 0 <= t < self.lm.vocab_size for p in self.prompts.ids for t in p):
            raise LawMismatchError("the prompts hold ids that the tokenizer does not know")
        room, longest, fix = max_positions(self.lm.model.config), self.longest, "shorten the prompts or max_new_tokens"
        if room is not None and longest > room:
            what = "prompt and answer exceed the model's max_position_embeddings"
            raise InputError(what, got=(longest, room), fix=fix)
        if not self.lm.is_llama and self.lm.running.way(longest) is None:
            what = "what the network says of a row this long depends on the rows that it was run on before"
            raise InputError(what, got=(longest, self.lm.running.limit), fix=fix)

    def drawn(
        self,
        prompt_n: Ints,
        ids_nL: Ints,
        length_n: Ints,
        stopped_n: NDArray[np.bool_],
        selected_nL: Floats,
        unselected_nL: Floats,
        near_n: Ints,
    ) -> Sequences:
        """Return n drawn rows as they are recorded; what lies beyond a row's length is zero."""
        width = int(length_n.max())
        return Sequences(
            self.prompts.ids,
            prompt_n,
            ids_nL[:, :width],
            length_n,
            stopped_n,
            selected_nL.sum(-1),
            token_log_prob=selected_nL[:, :width].astype(np.float32),
            token_log_prob_unselected=unselected_nL[:, :width].astype(np.float32),
            near_edge=near_n,
            prompts_are=self.prompts.are,
        )

    @property
    def way(self) -> Way:
        """How transformers runs the network for rows of up to this law's length; see `running`."""
        found = self.lm.running.way(self.longest)
        assert found is not None  # refused in __post_init__
        return found


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of every token with its id, and of which are special."""
    special = sorted(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()


def model_stop_ids(generation_config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return a model's own stop set, sorted: the end-of-sequence ids of the generation config, else the tokenizer's.

    Parameters
    ----------
    generation_config : of `load.outline` or of an opened network; both fall back to config.json. Ids that the tokenizer
        does not know are left out.
    tokenizer : the model's.

    Raises
    ------
    ModelError : eos_token_id is not an id.
    """
    eos: Any = getattr(generation_config, "eos_token_id", None)
    if eos is None:
        eos = tokenizer.eos_token_id
    ids: list[Any] = list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        fix = "mend generation_config.json and config.json, or give another model"
        raise ModelError("the model's eos_token_id is neither a token id nor a list of them", got=eos, fix=fix)
    return tuple(sorted({i for i in ids if 0 <= i < max(tokenizer.get_vocab().values()) + 1}))


def stop_set(stop: Sequence[int | str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Turn ids and token strings into a sorted stop set. Raises SpecError for unknown tokens."""
    vocabulary = tokenizer.get_vocab()
    known = set(vocabulary.values())
    ids: set[int] = set()
    for token in stop:
        i = vocabulary.get(token, -1) if isinstance(token, str) else int(token)
        if i not in known:
            raise SpecError("stop names a token that the tokenizer does not know", got=token, fix="give ids or tokens")
        ids.add(i)
    return tuple(sorted(ids))


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name; "auto" is float32."""
    match name:
        case "auto" | "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case _:
            raise ModelError("no such dtype for a causal LM", got=name, fix="use float32 or bfloat16")


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" takes cuda where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("no CUDA device is available", got=name, fix="use device cpu")
    if name.startswith("cuda"):
        # Deterministic algorithms of torch need it; read when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device(name)
