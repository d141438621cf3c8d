"""A network as body and head, so that logits are computed only where they are needed.

Shapes: B rows, T positions, M states, D width, W rows of the output matrix.

Whether logits are just the head's product with the body's states is tested on the network's structure: numbers of many
sizes replace the states and the logits, and must arrive unchanged. So a soft cap or a scale is detected in a fresh
network too, whose logits are too small to show it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Generator
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from hydrometer.core.errors import HydrometerError, ModelError, one_line
from hydrometer.core.io.os_errors import is_out_of_memory, refused_errno
from hydrometer.models.causal_lm.networks.cache import roomy_cache

__all__ = ["Network", "max_positions", "network_errors"]

_SIZES = (1e-3, 1.0, 30.0, 1e3, 1e5)


@contextlib.contextmanager
def network_errors(model: object, doing: str) -> Generator[None]:
    """Turn a library's errors about a network into one line that begins with `doing`. Raises ModelError.

    Lack of memory or disk space is passed on unchanged.
    """
    try:
        yield
    except (HydrometerError, InterruptedError):
        raise
    except Exception as e:  # a network's code is its author's and may raise anything
        if is_out_of_memory(e) or refused_errno(e) is not None:
            raise
        said = one_line(str(e), 200) or type(e).__name__
        fix = "check the sizes in its configuration, and that transformers runs it"
        raise ModelError(f"{doing} failed: {said}", got=type(model).__name__, fix=fix) from e


def max_positions(config: PretrainedConfig) -> int | None:
    """Return how many positions a network has, None if its configuration does not say."""
    found: object = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


@final
class Network:
    """A causal language model of transformers, without its tokenizer.

    Parameters
    ----------
    model : a network with an output over a vocabulary.
    holes : ids that do not exist; their logits are -inf.
    is_split : of a network without storage, which cannot be asked; None asks it.

    Attributes
    ----------
    is_split : whether `body` returns hidden states; if not, it returns the logits.
    """

    def __init__(self, model: PreTrainedModel, holes: Tensor | None = None, *, is_split: bool | None = None) -> None:
        self.model, self.holes = model, holes
        self._body = _body_of(model)
        self._accepts = set(inspect.signature((self._body or model).forward).parameters)
        self.is_split: bool = bool(is_split)
        if is_split is None:
            with network_errors(model, "running the network on a few ids"), torch.no_grad():
                self.is_split = _is_split(model, self._body)

    def pristine(self) -> Network:
        """Return a copy that shares the weights but no state that a run may leave behind."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, {id(p): p for p in self.model.parameters()})
        other._body = None if self._body is None else _body_of(other.model)
        return other

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def takes_a_cache(self) -> bool:
        """Whether the network's forward takes a cache and a mask."""
        return {"past_key_values", "attention_mask"} <= self._accepts

    @property
    def takes_positions(self) -> bool:
        """Whether the network's forward takes positions and a mask."""
        return {"position_ids", "attention_mask"} <= self._accepts

    def cache(self) -> DynamicCache:
        """Return an empty cache."""
        return roomy_cache(self.config)

    def body(self, ids_BT: Tensor, mask_BS: Tensor | None = None, cache: DynamicCache | None = None) -> Tensor:
        """Run all but the head.

        Parameters
        ----------
        ids_BT : (B, T) ids that follow what `cache` holds.
        mask_BS : (B, S) True on real tokens, S = cached + T; None where there is no padding, or only on the right.
        cache : extended in place.

        Returns
        -------
        (B, T, D) states for `logits`; of a network that is not split, logits, which `logits` returns unchanged.
        """
        with network_errors(self.model, "running the network"):
            return self._run(self._inputs(ids_BT, mask_BS, cache))

    def packed(self, ids_RS: Tensor, positions_RS: Tensor, mask_R1SS: Tensor) -> Tensor:
        """Run all but the head over several texts a row; as `body`.

        Parameters
        ----------
        positions_RS : (R, S) position of each id in its text. mask_R1SS : (R, 1, S, S) added to attention scores.
        """
        with network_errors(self.model, "running the network"):
            return self._run(
                {"input_ids": ids_RS, "position_ids": positions_RS, "attention_mask": mask_R1SS, "use_cache": False}
            )

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        return self._body(**inputs)[0] if self._body is not None and self.is_split else self.model(**inputs).logits

    def whole_logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of the whole network as its own forward gives them, (B, T, W) float32; holes are -inf."""
        with network_errors(self.model, "running the network"):
            logits_BTW = self.model(input_ids=ids_BT, use_cache=False).logits.float()
        return logits_BTW if self.holes is None else logits_BTW.index_fill(-1, self.holes.to(ids_BT.device), -torch.inf)

    def last_hidden(self, ids_BT: Tensor) -> Tensor:
        """States after the final norm, (B, T, D), of rows padded on the right, if at all. Raises ModelError."""
        if self._body is None:
            what = "the network has no part that gives its last hidden states"
            raise ModelError(what, got=type(self.model).__name__, fix="leave the picture out of the specification")
        with network_errors(self.model, "running the network"):
            return self._body(**self._inputs(ids_BT, None, None))[0]

    @property
    def head(self) -> nn.Linear:
        """Output matrix, (W, D), and its bias; of a network that is split."""
        return cast("nn.Linear", self.model.get_output_embeddings())

    def logits(self, states_MD: Tensor) -> Tensor:
        """Logits of all rows of the output matrix, (M, W), in the network's dtype; holes of the vocabulary are -inf.

        Columns beyond the vocabulary's size belong to no id.
        """
        with network_errors(self.model, "running the network's head"):
            logits_MW = self.head(states_MD) if self.is_split else states_MD
            if self.holes is None:
                return logits_MW
            return logits_MW.index_fill(-1, self.holes.to(logits_MW.device), -torch.inf)

    def _inputs(self, ids_BT: Tensor, mask_BS: Tensor | None, cache: DynamicCache | None) -> dict[str, Any]:
        past = cache.get_seq_length() if cache is not None else 0
        inputs: dict[str, Any] = {"input_ids": ids_BT, "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if mask_BS is not None:
            inputs["attention_mask"] = mask_BS.long()
            positions = (mask_BS.long().cumsum(-1)[:, past:] - 1).clamp_min(0)
        else:
            positions = torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        if "position_ids" in self._accepts:
            inputs["position_ids"] = positions
        return inputs


def _body_of(model: PreTrainedModel) -> nn.Module | None:
    """Return the network's body; some classes misname it in base_model_prefix."""
    body = model.base_model
    if body is not model:
        return body
    return next((part for part in model.children() if isinstance(part, PreTrainedModel)), None)


def _is_split(model: PreTrainedModel, body: nn.Module | None) -> bool:
    """Whether the head gets the body's states unchanged, and the logits are the head's output, at every size."""
    head: Any = model.get_output_embeddings()
    ids_BT = torch.arange(5, device=model.device)[None] % int(model.config.get_text_config().vocab_size)
    if body is None or type(head) is not nn.Linear or vars(head)["_forward_hooks"]:
        _logits(model, ids_BT)
        return False
    noise = torch.Generator().manual_seed(0)
    states: list[Tensor] = []
    met: list[Tensor] = []
    given: list[Tensor] = []

    def spread(like: Tensor) -> Tensor:
        """Numbers of all sizes, in the shape of a tensor."""
        sizes = torch.tensor(_SIZES)[torch.randint(len(_SIZES), like.shape, generator=noise)]
        return (torch.randn(like.shape, generator=noise) * sizes).to(like)

    def replace_states(_: nn.Module, inputs: object, output: Any) -> Any:
        states.append(spread(output[0]))
        if isinstance(output, tuple):
            return (states[-1], *output[1:])
        output[next(iter(output))] = states[-1]
        return output

    def replace_logits(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        met.append(inputs[0])
        given.append(spread(output))
        return given[-1]

    with (
        _hooked(body.register_forward_hook(replace_states)),
        _hooked(head.register_forward_hook(replace_logits)),
    ):
        logits_BTW = _logits(model, ids_BT)
    if len(met) != 1 or not torch.equal(logits_BTW, given[0].to(logits_BTW.dtype)):
        return False
    # Some classes never call their body, but a part of it: compare the body's own states.
    return torch.equal(met[0], states[0] if states else body(input_ids=ids_BT, use_cache=False)[0])


def _logits(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Logits of every position. Raises ModelError if the network gives none."""
    logits = getattr(model(input_ids=ids_BT, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        what = "not a causal LM: the network gives no logits over a vocabulary at every position"
        raise ModelError(what, got=type(model).__name__, fix="open it as transformers' AutoModelForCausalLM does")
    return logits


@contextlib.contextmanager
def _hooked(handle: Any) -> Generator[None]:
    try:
        yield
    finally:
        handle.remove()
