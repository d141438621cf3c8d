"""Finds, by numerical tests, which ways of running a network give each row the logits of the row alone.

A law is a function of its own row: ``p(x_t | prefix)`` is the network's output for that prefix alone, without padding,
cache or other rows. Faster ways are right for some architectures only, or up to some length: a rotary embedding may
depend on the longest row of a batch, experts may drop tokens of a batch, a state may run through padding. So each way
is run through the decoder and source that draw and score, on rows of different lengths, and compared with every prefix
alone: on a small twin, whose windows and limits a few tokens exceed, and on short rows of the network itself.

Ways are tried in this order:

    cached       prompts once, then token by token, padded on the left
    padded       whole rows, padded on the right
    by length    every prefix again, beside prefixes of the same length
    alone        every prefix again, alone
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.array_types import Ints
from hydrometer.core.errors import HydrometerError, ModelError
from hydrometer.models.causal_lm.networks.cache import is_extensible
from hydrometer.models.causal_lm.networks.decoders import CachedDecoder, Decoder, RecomputeDecoder, Way
from hydrometer.models.causal_lm.networks.network import Network, max_positions
from hydrometer.models.causal_lm.networks.sources import GeneralSource
from hydrometer.models.causal_lm.networks.twin import LIMIT, VOCABULARY, limit_of, make_twin

__all__ = ["Running", "find_running"]

_WAYS: tuple[Way, ...] = get_args(Way)
_TOLERANCE = 1e-3  # of the largest logit's size
_COARSE = 0.1  # where the network is not in float32 and has no twin
_STEPS = 4  # tokens of an answer
_WITHIN, _BEYOND = (3, LIMIT - _STEPS, 7), (3, LIMIT - 2, 2 * LIMIT)  # lengths of prompts, around the twin's limit
_OWN = (1, 5, 2)  # of prompts for the network itself


@dataclass(frozen=True, slots=True)
class Running:
    """How a network may be run.

    Attributes
    ----------
    short, long : the first way that is right for rows of up to `limit` positions, and for longer ones; None for none.
    whole_short, whole_long : whether whole rows padded on the right give every position the logits of its prefix alone,
        as training assumes.
    limit : positions up to which `short` holds; None if it holds for all lengths.
    """

    short: Way
    long: Way | None
    whole_short: bool
    whole_long: bool
    limit: int | None

    def way(self, longest: int) -> Way | None:
        """Return the way for rows of up to so many positions, or None."""
        return self.short if self.limit is None or longest <= self.limit else self.long

    def is_whole(self, longest: int) -> bool:
        """Whether whole rows of up to so many positions may be run padded on the right."""
        return self.whole_short if self.limit is None or longest <= self.limit else self.whole_long


@dataclass(frozen=True, slots=True)
class _OfTwin:
    """Results on a twin: whether it is body and head only, whether it is causal, and which ways are right."""

    is_split: bool
    is_causal: bool
    ways: dict[Way, tuple[bool, bool]]

    def allows(self, way: Way, *, beyond: bool = False) -> bool:
        """Whether a way is right within the twin's limit, or beyond it; true without a twin."""
        return self.ways.get(way, (not self.ways,) * 2)[beyond]


_known: dict[tuple[type, str], _OfTwin] = {}


@torch.no_grad()
def find_running(network: Network, size: int) -> Running:
    """Find out how a network may be run; clears its `is_split` if body and head are not the whole network.

    Parameters
    ----------
    size : ids that exist.

    Raises
    ------
    ModelError : the network cannot be run at all, is not causal, or gives a row other things beside other rows than
        alone in every way.
    """
    slot = type(network.model), network.config.to_json_string(use_diff=False)
    if slot not in _known:
        twin = make_twin(network.model)
        _known[slot] = _OfTwin(True, True, {}) if twin is None else _of_twin(Network(twin))
    twin = _known[slot]
    # With a twin, a network in bfloat16 is only run, not compared: rounding can send a token to other experts.
    coarse = math.inf if twin.ways else _COARSE
    own = _Trial(network, _OWN, size, tolerance=_TOLERANCE if network.model.dtype == torch.float32 else coarse)
    network.is_split = network.is_split and twin.is_split and own.is_right("alone")
    if not (twin.is_causal and own.is_causal()):
        what = "the network is not causal: what it says at a position depends on the tokens after it"
        fix = "give a causal one; where its configuration has is_decoder, that has to be true"
        raise ModelError(what, got=type(network.model).__name__, fix=fix)

    def first(*, beyond: bool) -> Way | None:
        return next((w for w in _WAYS if twin.allows(w, beyond=beyond) and own.is_right(w)), None)

    short, long = first(beyond=False), first(beyond=True)
    if short is None:
        what = "the network says other things of a row beside other rows, or after them, than of the row alone"
        raise ModelError(what, got=type(network.model).__name__, fix="give a network without such a part")
    whole = [twin.allows("padded", beyond=beyond) and own.is_right("padded") for beyond in (False, True)]
    is_steady = short == long and whole[0] == whole[1]
    return Running(short, long, whole[0], whole[1], None if is_steady else limit_of(network.config) or LIMIT)


def _of_twin(twin: Network) -> _OfTwin:
    """Try each way, as far as needed, within the twin's limit and beyond it."""
    room = max_positions(twin.config)
    is_short = room is not None and room < max(_BEYOND) + _STEPS
    trials = [_Trial(twin, lengths, VOCABULARY, fresh=True) for lengths in (_WITHIN, _BEYOND)[: 1 if is_short else 2]]
    if not all(trial.is_right("alone") for trial in trials):
        twin.is_split = False
        for trial in trials:
            trial.found.clear()
    ways: dict[Way, tuple[bool, bool]] = {}
    for way in _WAYS:
        right = [trial.is_right(way) for trial in trials]
        ways[way] = right[0], all(right)
        if "padded" in ways and any(all(found) for found in ways.values()):
            break
    return _OfTwin(twin.is_split, trials[0].is_causal(), ways)


class _Trial:
    """Rows of given lengths, and a network's logits for each of their prefixes alone.

    Parameters
    ----------
    lengths : of prompts; the longest prompt has a second row. size : ids that exist.
    fresh : run each prefix on a pristine copy. tolerance : see `_TOLERANCE`.
    """

    def __init__(
        self, network: Network, lengths: Sequence[int], size: int, *, fresh: bool = False, tolerance: float = _TOLERANCE
    ) -> None:
        self.network, self.tolerance = network, tolerance
        self.found: dict[Way, bool] = {}
        rng = np.random.default_rng(0)
        self.prompts = [tuple(rng.integers(0, size, n).tolist()) for n in lengths]
        self.of_B = np.array([*range(len(lengths)), int(np.argmax(lengths))])
        self.ids = [rng.integers(0, size, _STEPS) for _ in self.of_B]
        alone = [
            self._alone(row[:t], u, fresh) for row, u in zip(self.ids, self.of_B, strict=True) for t in range(_STEPS)
        ]
        self.right_BTW = torch.stack(alone).view(len(self.ids), _STEPS, -1)

    def _alone(self, begun: Ints, u: int, fresh: bool) -> Tensor:
        network = self.network.pristine() if fresh else self.network
        return network.whole_logits(torch.tensor([[*self.prompts[u], *begun.tolist()]], device=network.device))[0, -1]

    def is_causal(self) -> bool:
        """Whether a whole row, alone, gives every position the logits of its prefix alone."""
        found: list[Tensor] = []
        for row, u in zip(self.ids, self.of_B, strict=True):
            whole = torch.tensor([[*self.prompts[u], *row[:-1].tolist()]], device=self.network.device)
            found.append(self.network.whole_logits(whole)[0, -len(row) :])
        return self._agrees(torch.stack(found))

    def is_right(self, way: Way) -> bool:
        """Whether drawing and scoring in this way give the logits of each prefix alone."""
        if way not in self.found:
            self.found[way] = self._tried(way)
        return self.found[way]

    def _tried(self, way: Way) -> bool:
        if way == "cached" and not self._keeps_a_cache():
            return False
        try:
            return self._agrees(self._drawn(way)) and self._agrees(self._scored(way))
        except HydrometerError:  # the network does not take its rows in this way
            return False

    def _keeps_a_cache(self) -> bool:
        cache = self.network.cache()
        if not self.network.takes_a_cache:
            return False
        try:
            self.network.body(torch.tensor([self.prompts[0]], device=self.network.device), cache=cache)
            return is_extensible(cache, len(self.prompts[0]))
        except (HydrometerError, ValueError):  # caches without a layer of attention have no length
            return False

    def _drawn(self, way: Way) -> Tensor:
        """Logits step by step, (B, T, W); the second row is dropped after two steps."""
        network, prompts = self.network, self.prompts
        decoder: Decoder = (
            CachedDecoder(network, prompts, self.of_B)
            if way == "cached"
            else RecomputeDecoder(network, way, prompts, self.of_B)
        )
        kept = np.arange(len(self.ids))
        out = self.right_BTW.clone()
        logits = torch.as_tensor(decoder.start())
        for t in range(_STEPS):
            out[torch.from_numpy(kept), t] = logits.float()
            if t == _STEPS - 1:
                return out
            if t == 1:
                stay = np.flatnonzero(kept != 1)
                kept = kept[stay]
                decoder.keep(stay)
            logits = torch.as_tensor(decoder.step(np.array([self.ids[b][t] for b in kept])))
        return out

    def _scored(self, way: Way) -> Tensor:
        source = GeneralSource(self.network, way, self.prompts)
        return torch.as_tensor(source.logits(source.states(self.ids, self.of_B))).float().view_as(self.right_BTW)

    def _agrees(self, other_BTW: Tensor) -> bool:
        right = self.right_BTW
        known = torch.isfinite(right)  # holes are -inf
        off = torch.where(known, other_BTW - right, 0.0).abs().max()
        size = torch.where(known, right, 0.0).abs().max().clamp_min(1.0)
        return bool(off <= self.tolerance * size)
