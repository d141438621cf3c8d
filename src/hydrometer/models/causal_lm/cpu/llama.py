"""Llama-type networks run on the CPU from their own weights, on packed tokens: prompts, decode steps and whole answers.

Shapes: M tokens packed without padding, U prompts, B rows, D width, H query heads on G key heads of size d, V ids.

One forward serves all three. Each token has a row of the cache (slot), a place in it, and a position; each row has a
prompt, whose keys and values are computed once and not copied. Matrix products are oneDNN's on packed weights; all
other operations are in `layer_ops`. The residual stream is float32 throughout.

Llama, Mistral without a window, Qwen2 and Qwen3 are of this type. Recognition by name is verified numerically:
`CausalLM` takes this path only if a small twin of the network gives the same logits (`Llama.agrees`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hydrometer.models.causal_lm.cpu.layer_ops import add_rms_norm, attend, gate
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool

__all__ = ["Array", "Cache", "Llama", "Packing", "PromptCache", "as_array", "llama_twin", "same_logits"]

_NAMES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_FIXED_ROPE = {"default", "linear", "llama3", "yarn"}
_ROWS_HINT = 128  # for oneDNN's choice of layout
_PROMPTS_TOGETHER = 8
_SHARED_PREFIX = 8  # a prefix that all prompts share is run once when it is at least so long

_MINUS_INFINITY = {"uint16": 0xFF80, "float32": -np.inf}

Linear = Callable[[Tensor], Tensor]
Array = NDArray[Any]


def as_array(x: Tensor) -> Array:
    """View a tensor's memory as an array; bfloat16 as the uint16 of its bits."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _packed(parts: Sequence[nn.Linear]) -> Linear:
    """Return the product with one or more stacked weights, in oneDNN's layout if torch supports it."""
    weights: list[Tensor] = [p.weight.detach() for p in parts]
    biases: list[Tensor | None] = [p.bias for p in parts]
    weight = weights[0] if len(parts) == 1 else torch.cat(weights)
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases if b is not None])
    ops: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or (
        weight.dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported()
    ):
        return lambda x: F.linear(x, weight, bias)
    laid_out = ops._reorder_linear_weight(weight, _ROWS_HINT)
    return lambda x: ops._linear_pointwise(x, laid_out, bias, "none", [], "")


@dataclass(frozen=True, slots=True)
class Packing:
    """Where packed tokens are, (M,) int64 each: absolute position, row of the cache, place in that row."""

    position: NDArray[np.int64]
    slot: NDArray[np.int64]
    place: NDArray[np.int64]

    @staticmethod
    def of(lengths: NDArray[np.int64], first: NDArray[np.int64]) -> Packing:
        """Whole rows, one after another: row b holds lengths[b] tokens from position first[b] on."""
        slot = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Packing(first[slot] + place, slot, place)


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of each layer, (rows, G, room, d)."""

    keys: list[Array]
    values: list[Array]


@dataclass(frozen=True, slots=True)
class PromptCache:
    """Caches of U prompts, their lengths (U,), and the states (U, D) that predict their first answer token."""

    cache: Cache
    length: NDArray[np.int64]
    states: Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    norm_in: Array
    norm_mid: Array
    norm_q: Array
    norm_k: Array
    qkv: tuple[nn.Linear, ...]
    out: tuple[nn.Linear, ...]
    gate_up: tuple[nn.Linear, ...]
    down: tuple[nn.Linear, ...]

    def pack(self) -> tuple[Linear, Linear, Linear, Linear]:
        return _packed(self.qkv), _packed(self.out), _packed(self.gate_up), _packed(self.down)


class Llama:
    """A Llama-type network's weights, as `layer_ops` and oneDNN take them; views of the network's if possible.

    Parameters
    ----------
    model : of one of the types above; see `recognise`.
    holes : ids that do not exist; their logits are -inf.
    """

    def __init__(self, model: PreTrainedModel, holes: Tensor | None = None) -> None:
        config: Any = model.config
        body: Any = model.base_model
        head: Any = model.get_output_embeddings()
        self.dtype: torch.dtype = model.dtype
        self.heads_q = int(config.num_attention_heads)
        self.heads_k = int(config.num_key_value_heads)
        self.size = int(body.layers[0].self_attn.head_dim)
        self.inner = int(config.intermediate_size)
        self.epsilon = float(config.rms_norm_eps)
        self.scale = float(body.layers[0].self_attn.scaling)
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._norm_out = _norm(body.norm)
        self._head_module: nn.Linear = head
        self._holes = None if holes is None else holes.numpy()
        self._rotary: Any = body.rotary_emb
        self._angles: tuple[Array, Array] = (np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        self._layers = [
            _Layer(
                _norm(x.input_layernorm),
                _norm(x.post_attention_layernorm),
                _norm(getattr(x.self_attn, "q_norm", None)),
                _norm(getattr(x.self_attn, "k_norm", None)),
                (x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj),
                (x.self_attn.o_proj,),
                (x.mlp.gate_proj, x.mlp.up_proj),
                (x.mlp.down_proj,),
            )
            for x in body.layers
        ]
        self._products: list[tuple[Linear, Linear, Linear, Linear]] | None = None
        self._head: Linear | None = None

    @staticmethod
    def recognise(model: PreTrainedModel) -> bool:
        """Whether the network is of this type by class, configuration and parts."""
        config: Any = model.config
        if type(model).__name__ not in _NAMES or not type(model).__module__.startswith("transformers.models."):
            return False
        rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
        kinds: Any = getattr(config, "layer_types", None) or ["full_attention"]
        windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        plain = (
            model.dtype in (torch.float32, torch.bfloat16)
            and config.hidden_act in ("silu", "swish")
            and rope.get("rope_type", "default") in _FIXED_ROPE
            and set(kinds) == {"full_attention"}
            and not (windowed and "layer_types" not in config.to_dict())
        )
        return plain and Llama.untouched(model)

    @staticmethod
    def untouched(model: PreTrainedModel) -> bool:
        """Whether every module is unmodified: no hooks, no replaced forward, no changed constants."""
        config: Any = model.config
        for part in model.modules():
            own = vars(part)
            if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
                return False
            if isinstance(part, nn.Linear) and (type(part) is not nn.Linear or part.weight.dtype != model.dtype):
                return False
            if own.get("variance_epsilon", config.rms_norm_eps) != config.rms_norm_eps:
                return False
            if "scaling" in own and own["scaling"] != own["head_dim"] ** -0.5:
                return False
        return True

    @staticmethod
    @torch.no_grad()
    def agrees(model: PreTrainedModel) -> bool:
        """Whether this class gives the logits of a small float32 twin of the network: same class and settings."""
        twin = llama_twin(model)
        if twin is None:
            return False
        engine = Llama(twin)
        ids = tuple(range(5, 17))
        return same_logits(torch.from_numpy(engine.logits(engine.prefix_states(ids))), twin, ids)

    # -- products -----------------------------------------------------------------------------------------------------

    def pack(self) -> None:
        """Lay all weights out for oneDNN, once: a copy of the network, which pays for many small products."""
        if self._products is None:
            self._products = [layer.pack() for layer in self._layers]
        self.pack_head()

    def pack_head(self) -> Linear:
        """Return the output matrix laid out for oneDNN, once."""
        if self._head is None:
            self._head = _packed([self._head_module])
        return self._head

    def logits(self, states_MD: Tensor) -> Array:
        """Logits of every row of the output matrix, (M, rows), float32 or bfloat16 bits."""
        logits = as_array(self.pack_head()(states_MD))
        if self._holes is not None:
            logits[:, self._holes] = _MINUS_INFINITY[logits.dtype.name]
        return logits

    # -- caches -------------------------------------------------------------------------------------------------------

    def cache(self, rows: int, room: int, *, shared: bool = False) -> Cache:
        """Make an empty cache; `shared` gives all layers the same memory, for a single pass."""
        storage = np.uint16 if self.dtype == torch.bfloat16 else np.float32

        def empty() -> list[Array]:
            shape = (rows, self.heads_k, max(room, 1), self.size)
            if shared:
                return [np.empty(shape, storage)] * len(self._layers)
            # One allocation, large enough for huge pages.
            return list(np.empty((len(self._layers), *shape), storage))

        return Cache(empty(), empty())

    def prompts(self, prompts: Sequence[tuple[int, ...]], pool: ThreadPool) -> PromptCache:
        """Run U prompts, each once, and their common prefix once for all."""
        u = len(prompts)
        length = np.array([len(p) for p in prompts], np.int64)
        shared = _common_prefix(prompts)
        whole = self.cache(u, int(length.max()))
        head = self.no_prompts()
        if shared:
            head = self.prompts([prompts[0][:shared]], ThreadPool(1))
            for layer in range(len(self._layers)):
                whole.keys[layer][:, :, :shared] = head.cache.keys[layer]
                whole.values[layer][:, :, :shared] = head.cache.values[layer]

        def run(part: slice) -> Tensor:
            # A few at a time: what they take besides `whole` is as long as the longest of them. In bfloat16, of half
            # the size, all at once: there the bits of a product depend on its rows.
            few = _PROMPTS_TOGETHER if self.dtype == torch.float32 else u
            return torch.cat([some(slice(a, min(a + few, part.stop))) for a in range(part.start, part.stop, few)])

        def some(part: slice) -> Tensor:
            own = length[part] - shared
            cache = self.cache(len(own), int(own.max()))
            tokens = np.concatenate([np.array(p[shared:], np.int64) for p in prompts[part]])
            of = np.full(len(own), 0 if shared else -1, np.int64)
            states = self.forward(tokens, Packing.of(own, np.full(len(own), shared)), cache, head, of)
            room = cache.keys[0].shape[2]
            for layer in range(len(self._layers)):
                whole.keys[layer][part, :, shared : shared + room] = cache.keys[layer]
                whole.values[layer][part, :, shared : shared + room] = cache.values[layer]
            return states[torch.from_numpy(np.cumsum(own) - 1)]

        return PromptCache(whole, length, torch.cat(pool.each(run, pool.split(u))))

    def prefix_states(self, tokens: tuple[int, ...]) -> Tensor:
        """States at every token of one sequence, (M, D)."""
        own = np.array([len(tokens)], np.int64)
        at, cache = Packing.of(own, np.zeros(1, np.int64)), self.cache(1, len(tokens), shared=True)
        return self.forward(np.array(tokens, np.int64), at, cache, self.no_prompts(), np.full(1, -1))

    def no_prompts(self) -> PromptCache:
        """Return the cache of no prompt."""
        return PromptCache(self.cache(1, 1, shared=True), np.zeros(1, np.int64), torch.empty(0))

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens_M: NDArray[np.int64],
        at: Packing,
        cache: Cache,
        prompts: PromptCache,
        prompt_of_slot: NDArray[np.int64],
    ) -> Tensor:
        """Run all but the head on packed tokens; keys and values go into `cache`.

        Parameters
        ----------
        tokens_M : ids.
        at : their positions; tokens of a row in order.
        cache : of this run's rows.
        prompts, prompt_of_slot : the prompt of each row of the cache, -1 for none.

        Returns
        -------
        (M, D) states for `logits`, in the network's dtype.
        """
        m = len(tokens_M)
        rotary = self._turned(int(at.position.max()) + 1)
        tokens = (at.position, at.slot, at.place)
        residual = F.embedding(torch.from_numpy(tokens_M), self._embedding).float().numpy()
        normed = torch.empty(m, residual.shape[1], dtype=self.dtype)
        attended = torch.empty(m, self.heads_q * self.size, dtype=self.dtype)
        gated = torch.empty(m, self.inner, dtype=self.dtype)
        normed_a, attended_a, gated_a = as_array(normed), as_array(attended), as_array(gated)
        delta = normed_a[:0]
        for i, layer in enumerate(self._layers):
            qkv, out, gate_up, down = layer.pack() if self._products is None else self._products[i]
            add_rms_norm(residual, delta, layer.norm_in, self.epsilon, normed_a)
            before = (prompt_of_slot, prompts.length, prompts.cache.keys[i], prompts.cache.values[i])
            own = (cache.keys[i], cache.values[i])
            norms = (layer.norm_q, layer.norm_k, self.epsilon)
            attend(as_array(qkv(normed)), tokens, before, own, rotary, norms, self.scale, attended_a)
            delta = as_array(out(attended))
            add_rms_norm(residual, delta, layer.norm_mid, self.epsilon, normed_a)
            gate(as_array(gate_up(normed)), gated_a)
            delta = as_array(down(gated))
        add_rms_norm(residual, delta, self._norm_out, self.epsilon, normed_a)
        return normed

    def _turned(self, positions: int) -> tuple[Array, Array]:
        """Cosines and sines of the rotary angles of at least so many positions, (positions, d) float32 each."""
        angles = self._angles
        if len(angles[0]) < positions:
            at = torch.arange(max(256, 2 * positions))[None]
            cos, sin = self._rotary(torch.empty(0, dtype=torch.float32), at)
            self._angles = angles = cos[0].float().numpy(), sin[0].float().numpy()
        return angles


def llama_twin(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a small float32 network of the same class and settings, on the CPU; None where it has other parts.

    A twin, because bfloat16 logits are too coarse to compare (transformers rounds the residual stream, `Llama` does
    not), and a float32 copy of a large network costs too much.
    """
    fields: dict[str, Any] = model.config.to_dict()
    group = fields["num_attention_heads"] // fields["num_key_value_heads"]
    fields |= {
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_attention_heads": 2 * group,
        "head_dim": 16,
        "hidden_size": 32 * group,
        "intermediate_size": 48,
        "vocab_size": 64,
        "layer_types": None,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin: Any = type(model)(type(model.config)(**fields)).float().eval()
        for p in twin.parameters():
            p.data.normal_(std=0.3)
    return twin if {type(m) for m in twin.modules()} == {type(m) for m in model.modules()} else None


def same_logits(ours_TW: Tensor, twin: Any, ids: tuple[int, ...], first: int = 0) -> bool:
    """Whether logits at every token of a row, from the `first` on, are the twin's."""
    theirs: Tensor = twin(torch.tensor([ids], device=twin.device)).logits[0, first:]
    return bool((ours_TW - theirs).abs().max() <= 1e-4 * max(1.0, float(theirs.abs().max())))


def _norm(module: Any) -> Array:
    return np.empty(0, np.float32) if module is None else module.weight.detach().float().numpy()


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the prompts' common prefix, 0 if not worth a run; always less than a whole prompt."""
    n = min(len(p) for p in prompts) - 1
    first = prompts[0]
    shared = next((i for i in range(n) if any(p[i] != first[i] for p in prompts)), max(n, 0))
    return shared if len(prompts) > 1 and shared >= _SHARED_PREFIX else 0
