"""What a fit holds in memory: weights, gradients, optimizer states, and what a step saves for its backward pass.

Shapes: B rows, T positions of the widest batch, M answer tokens of it, H heads, D width.

Activations are counted, not estimated: the network runs forward on tensors without storage (torch's fake tensors), and
the distinct storages are added up that autograd saves and that are no weights. Copies that autocast makes of weights
are among them. Attention is counted as the fused kernels have it: queries, keys, values, output, and a float32
log-sum-exp of each query, never T x T weights; a network that does not call torch's attention is counted as it is.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, masking_utils
from transformers.modeling_layers import GradientCheckpointingLayer

from hydrometer.core.errors import FitError
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.networks.network import Network
from hydrometer.models.causal_lm.networks.twin import make_twin
from hydrometer.models.causal_lm.training.layers import Configuration, empty_network
from hydrometer.models.causal_lm.training.optimised import adapter_parameters, attached, recomputing, rounded
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["BYTES", "MOMENTS", "Batch", "SavedBytes", "activation_bytes", "fit_bytes", "refuse_where_too_large"]

BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = {"adamw_torch_fused": 2, "adamw_torch": 2, "adafactor": 0, "sgd": 0}
"""Numbers that an optimizer keeps of a parameter; adafactor keeps those of rows and columns."""
_CHUNK = 1024  # rows of logits that the loss holds at once
_GIB = 2**30


class Batch(NamedTuple):
    """Rows, positions of the longest, and answer tokens of the longest."""

    rows: int
    positions: int
    answers: int


class SavedBytes:
    """Adds up what autograd saves while the context is open, of storages that are still there when it is asked.

    Parameters
    ----------
    apart : tensors that do not count, such as weights.
    """

    def __init__(self, apart: Iterable[Tensor]) -> None:
        self._apart = [StorageWeakRef(x.untyped_storage()) for x in apart]
        self._not = {ref.cdata for ref in self._apart}
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *given: object) -> None:
        self._hooks.__exit__(*given)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        ref = StorageWeakRef(storage)
        if ref.cdata not in self._not:
            self._found.setdefault(ref.cdata, (ref, storage.nbytes()))
        return x.detach()

    def __len__(self) -> int:
        return len(self._found)

    def bytes(self, start: int = 0, apart: Iterable[Tensor] = ()) -> int:
        """Bytes of the storages that were first saved after `start` others, without those of some tensors."""
        without = {StorageWeakRef(x.untyped_storage()).cdata for x in apart}
        found = list(self._found.items())[start:]
        return sum(n for key, (ref, n) in found if key not in without and not ref.expired())


def fit_bytes(config: PretrainedConfig, n: int, t: Training, batch: Batch | None = None, device: str = "cpu") -> int:
    """Return what a fit holds besides other models: weights, gradients, states, the best evaluation, the loss.

    Parameters
    ----------
    n : parameters of the network. batch : counts activations too. device : that autocast follows.
    """
    width, learnt = BYTES[t.torch_dtype], _learnt(config, n, t)
    own = width if t.lora is None and not t.master_weights else 4  # adapters are float32 over any base
    apart = 0 if t.lora is None and width == 4 else width * n
    if t.lora is not None:
        apart += 4 * learnt
    kept = 4 * n + apart + learnt * own * MOMENTS[t.optim] + 4 * learnt
    gradients, saved = learnt * own, 0 if batch is None else activation_bytes(config, t, batch, device)
    # Of a step of one batch gradients come as activations go; later batches of a step find gradients there.
    most = gradients + saved if t.gradient_accumulation_steps > 1 else max(gradients, saved)
    return kept + most + _loss(config, 2 if t.bf16 else 4, learnt=t.lora is None)


def _learnt(config: PretrainedConfig, n: int, t: Training) -> int:
    """How many of n parameters are trained, or those of adapters."""
    return n if t.lora is None else adapter_parameters(empty_network(config), t.lora)


def _loss(config: PretrainedConfig, width: int, *, learnt: bool = True) -> int:
    """The output matrix's gradient, if it is learnt, its product and a chunk of logits."""
    text = config.get_text_config()
    size, matrix = int(text.vocab_size), int(text.vocab_size) * int(getattr(text, "hidden_size", 0))
    return matrix * (4 + width if learnt else width) + _CHUNK * size * width


def refuse_where_too_large(
    lm: OpenedLM, data: Sequences | TrainingRows, t: Training, free: int, *, draws_own: bool = False
) -> None:
    """Refuse a fit whose network is on an accelerator, and that needs more than the free bytes there. Raises FitError.

    Counted is what the fit surely holds at once: a whole batch, as wide as the longest row if every row is learnt;
    neither the best evaluation, which may be kept when the last step is over, nor what the loss takes in passing. Of
    several workers, whose share of it differs, nothing is.
    """
    if t.num_workers > 1:
        return
    widths = np.array([len(p) for p in data.prompt_ids])[data.prompt_index] + data.lengths
    together = t.per_device_train_batch_size * t.gradient_accumulation_steps
    whole = not draws_own and t.steps(len(data))[1] * together >= len(data)
    width = int(widths.max() if whole else widths.min())
    batch = Batch(min(t.per_device_train_batch_size, len(data)), width, int(data.lengths.min()))
    config, n = lm.model.config, lm.n_parameters
    needs = fit_bytes(config, n, t, batch, lm.device.type) - 4 * n - 4 * _learnt(config, n, t)
    needs -= _loss(config, 2 if t.bf16 else 4, learnt=t.lora is None)
    if needs > free:
        raise FitError(
            f"the fit needs at least {needs / _GIB:.1f} GiB more on the card",
            got=f"{free / _GIB:.1f} GiB free",
            fix="lower per_device_train_batch_size with gradient_accumulation_steps, or gradient_checkpointing: true",
        )


# -- activations ------------------------------------------------------------------------------------------------------

_known: dict[tuple[object, ...], int] = {}


def activation_bytes(config: PretrainedConfig, training: Training, batch: Batch, device: str = "cpu") -> int:
    """Return the bytes that a step of a batch saves for its backward pass.

    0 of a network that needs numbers to run, as mixtures of experts do, or that runs position after position.

    With gradient checkpointing those are the layers' inputs, and what the largest layer saves when it is run again.
    The loss keeps the states that predict answers, and their gradient; of divergences the teacher's side is left out.
    """
    t = training
    settings = t.torch_dtype, t.bf16, t.gradient_checkpointing, t.lora
    slot = (Configuration.of(config), settings, batch, device)
    if slot not in _known:
        _known[slot] = _counted(config, t, batch, device)
    return _known[slot]


def _counted(config: PretrainedConfig, t: Training, batch: Batch, device: str) -> int:
    if getattr(type(empty_network(config)), "_is_stateful", False):
        return 0
    told = logging.getLogger("torch._subclasses.fake_tensor")
    level = told.level
    told.setLevel(logging.CRITICAL)  # it prints a traceback of what has no form without numbers
    try:
        twin = make_twin(empty_network(config))
        if twin is not None and t.lora is not None:
            attached(twin, t.lora)
        split = twin is None or Network(twin).is_split
        with FakeTensorMode(), _WithoutNumbers(device):
            network = _without_storage(config, t, device)
            whole, largest = _forward(network, split, t, batch, device)
            if not t.gradient_checkpointing:
                return whole
            with recomputing(network):
                return _forward(network, split, t, batch, device)[0] + largest
    except Exception:  # a network's code is its author's, and may look at numbers
        return 0
    finally:
        told.setLevel(level)


def _without_storage(config: PretrainedConfig, t: Training, device: str) -> Any:
    """The network that is trained, in training mode, of fake tensors. To be called in their mode."""
    with unset_fake_temporarily():  # adapters do not come into a network of fake tensors, but into one of torch's meta
        empty: Any = rounded(empty_network(config), getattr(torch, t.torch_dtype))
        if t.lora is not None:
            attached(empty, t.lora)
    made: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype, device=device) for b in empty.buffers()}
    for p in empty.parameters():
        made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device), p.requires_grad)
    return copy.deepcopy(empty, made).train()


def _forward(network: Any, split: bool, t: Training, batch: Batch, device: str) -> tuple[int, int]:
    """Bytes that a forward pass saves, and the most that one layer saves."""
    rows, positions, answers = batch
    ids_BT = torch.empty(rows, positions, dtype=torch.int64, device=device)
    apart, layers = [*network.parameters(), *network.buffers()], [0]
    width = BYTES["bfloat16" if t.bf16 else "float32"]
    with SavedBytes(apart) as saved, _per_layer(network, saved, layers):
        with torch.autocast(device, torch.bfloat16, enabled=t.bf16):
            out_BTD = Network(network, is_split=split).body(ids_BT)
        mask, states = rows * (positions - 1), rows * answers * out_BTD.shape[-1]
        if split:
            own = out_BTD.element_size()
            return saved.bytes() + mask + states * (own + width + (0 if own == width else width)), max(layers)
        logits_MV = out_BTD.new_empty(rows * answers, out_BTD.shape[-1]).requires_grad_()
        ids_M = torch.empty(rows * answers, dtype=torch.int64, device=device)
        loss = F.cross_entropy(logits_MV.float(), ids_M, reduction="sum")
        assert loss.requires_grad  # so that what it saved is still there
        return saved.bytes() + mask, max(layers)


@contextlib.contextmanager
def _per_layer(network: nn.Module, saved: SavedBytes, found: list[int]) -> Generator[None]:
    """Append what each layer saves besides its inputs."""
    starts: list[int] = []

    def before(*_: object) -> None:
        starts.append(len(saved))

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        found.append(saved.bytes(starts.pop(), given))

    with contextlib.ExitStack() as held:
        for m in network.modules():
            if isinstance(m, GradientCheckpointingLayer):
                held.callback(m.register_forward_pre_hook(before).remove)
                held.callback(m.register_forward_hook(after, with_kwargs=True).remove)
        yield


class _WithoutNumbers(TorchFunctionMode):
    """Runs attention as the fused kernels save it, and takes a question about numbers for true.

    Tensors without storage are not taken for a compiler's, for which masks are made that no real step has.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self._patched: Any = mock.patch.object(masking_utils, "is_tracing", return_value=False, create=True)

    def __enter__(self) -> Any:
        self._patched.__enter__()
        return super().__enter__()

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self._patched.__exit__(*given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__:  # rows of a batch are one text each, as their positions would say
            return True
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Any:
        if torch.is_autocast_enabled(self.device):
            dtype = torch.get_autocast_dtype(self.device)
            query, key, value = (x.to(dtype) for x in (query, key, value))
        apply: Any = _FusedAttention.apply
        return apply(query, key, value, attn_mask)


class _FusedAttention(torch.autograd.Function):
    """Shapes and saved tensors of fused attention, without numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *batch, heads, positions, _ = query.shape
        out = query.new_empty(*batch, positions, heads, value.shape[-1]).transpose(-3, -2)
        sums = query.new_empty(*batch, heads, positions, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError  # only what is saved is asked for
