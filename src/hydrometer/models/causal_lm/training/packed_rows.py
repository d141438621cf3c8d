"""Training batches without padding: each prompt once, followed by its answers.

Shapes: B rows, T positions of the longest, R packs, S positions of a pack, M answer tokens of a batch, D width.

    a prompt's token sees         its prompt up to itself
    an answer's token sees        the prompt, and its own answer up to itself; its positions go on from the prompt's

So the states that predict answer tokens are those of each row alone, and gradients reach a prompt's states from all of
its answers. Whether a network honours mask and positions, in training mode and in the backward pass, is tested
numerically on a small twin, as in `running`. Windows, recurrent states, factors that depend on a row's length, and
dropout show there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hydrometer.core.array_types import Ints
from hydrometer.core.errors import HydrometerError
from hydrometer.models.causal_lm.networks.network import Network, max_positions
from hydrometer.models.causal_lm.networks.twin import LIMIT, VOCABULARY, make_twin

__all__ = ["IGNORED", "PackedRows", "learns_packed", "pack", "packed_size", "packed_states", "takes_packed_rows"]

IGNORED = -100
"""Label of ignored positions, as in transformers."""

_MOST = 512  # positions of a pack: its attention grows with their square
_PAYS = 0.75  # of the positions of padded rows
_TOLERANCE = 1e-4  # of the largest state, and of the largest gradient
_LENGTHS = (3, LIMIT - 3), (3, LIMIT - 2, 2 * LIMIT)  # of prompts, within the twin's limit and beyond it
_FEW = (1, 5)  # of prompts for the network itself


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """A batch as packs.

    Attributes
    ----------
    ids, positions : (R, S) int64; padding attends to itself only.
    mask : (R, 1, S, S) float32, added to attention scores: 0 or minus infinity.
    at : (M,) int64, flat indices (R * S) of the positions that predict each answer token, row by row.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    at: Tensor


def pack(ids_BT: Tensor, labels_BT: Tensor) -> PackedRows | None:
    """Pack rows that are prompt, answer and padding; labels are those of the answers, `IGNORED` elsewhere.

    Rows without a label are left out. None without any label, or if packing does not pay: few rows share a prompt and
    all are about as long.

    Examples
    --------
    >>> ids = torch.tensor([[7, 8, 9, 3, 4]] * 4)
    >>> rows = pack(ids, torch.where(ids < 5, ids, IGNORED))
    >>> rows.ids.tolist(), rows.positions.tolist(), rows.at.tolist()
    ([[7, 8, 9, 3, 3, 3, 3]], [[0, 1, 2, 3, 3, 3, 3]], [2, 3, 2, 4, 2, 5, 2, 6])
    """
    ids, wanted = ids_BT.numpy(), labels_BT.numpy() != IGNORED
    rows = np.flatnonzero(wanted.any(1))
    if not rows.size:
        return None
    start_B, length_B = wanted.argmax(1), wanted.sum(1)
    known: dict[bytes, int] = {}
    of_B = [known.setdefault(ids[b, : start_B[b]].tobytes(), len(known)) for b in rows]
    prompt_B, fed_B = start_B[rows], length_B[rows] - 1
    packs = _packs(of_B, prompt_B, fed_B)
    if not _pays(packs, *ids.shape):
        return None
    shape = len(packs), max(p.length for p in packs)
    out, place, piece, row = (np.full(shape, v, np.int64) for v in (0, 0, -1, -1))
    first = np.empty(len(rows), np.int64)  # where a row's first token is predicted, and where its own tokens begin
    own = np.empty(len(rows), np.int64)
    for r, p in enumerate(packs):
        at = 0
        for k, members in enumerate(p.pieces):
            n, begin = int(prompt_B[members[0]]), at
            out[r, at : at + n] = ids[rows[members[0]], :n]
            place[r, at : at + n] = np.arange(n)
            at += n
            for i in members:
                first[i], own[i], fed = r * shape[1] + begin + n - 1, r * shape[1] + at, int(fed_B[i])
                out[r, at : at + fed] = ids[rows[i], n : n + fed]
                place[r, at : at + fed] = np.arange(n, n + fed)
                row[r, at : at + fed] = i
                at += fed
            piece[r, begin:at] = k
    after = [np.concatenate([[first[i]], own[i] + np.arange(fed_B[i])]) for i in range(len(rows))]
    ids_RS, positions_RS, at_M = (torch.from_numpy(a) for a in (out, place, np.concatenate(after)))
    return PackedRows(ids_RS, positions_RS, _mask(piece, row), at_M)


def packed_size(of_B: Sequence[int], prompt_B: Ints, answer_B: Ints, width: int) -> int:
    """Return the positions of a batch: R * S of its packs, or those of padded rows if packing does not pay.

    Parameters
    ----------
    of_B : which prompt each row answers. prompt_B, answer_B : tokens of each row's prompt and answer.
    width : tokens of the longest row.

    Examples
    --------
    >>> packed_size([0, 0, 0, 0], np.full(4, 60), np.full(4, 22), 82)  # 60 + 4 * 21 instead of 4 * 82
    144
    >>> packed_size([0, 1, 2, 3], np.full(4, 60), np.full(4, 22), 82)
    328
    """
    packs = _packs(of_B, prompt_B, answer_B - 1)
    padded = len(of_B) * width
    return len(packs) * max(p.length for p in packs) if _pays(packs, len(of_B), width) else padded


def packed_states(network: Network, rows: PackedRows) -> Tensor:
    """Run packs; (M, D) states at the positions that predict each answer token, row by row, differentiable."""
    return network.packed(rows.ids, rows.positions, rows.mask).flatten(0, 1).index_select(0, rows.at)


@dataclass(slots=True)
class _Pack:
    """Rows by prompt, and their number of positions."""

    pieces: list[list[int]]
    length: int = 0


def _packs(of_B: Sequence[int], prompt_B: Ints, fed_B: Ints) -> list[_Pack]:
    """Distribute rows over packs of about equal length: rows of a prompt together if they fit, longest first."""
    most = max(_MOST, int((prompt_B + fed_B).max()) * 5 // 4)
    groups: dict[int, list[int]] = {}
    for i, u in enumerate(of_B):
        groups.setdefault(u, []).append(i)
    pieces: list[tuple[int, list[int]]] = []
    for members in groups.values():
        own, fed = int(prompt_B[members[0]]), int(fed_B[members].sum())
        n = min(len(members), max(1, -(-fed // (most - own))))
        parts = [members[k::n] for k in range(n)]
        pieces += [(own + int(fed_B[part].sum()), part) for part in parts]
    packs = [_Pack([]) for _ in range(-(-sum(n for n, _ in pieces) // most))]
    for n, part in sorted(pieces, key=lambda x: -x[0]):
        least = min(packs, key=lambda p: p.length)
        least.pieces.append(part)
        least.length += n
    return packs


def _pays(packs: list[_Pack], rows: int, width: int) -> bool:
    return len(packs) * max(p.length for p in packs) <= _PAYS * rows * width


def _mask(piece_RS: Ints, row_RS: Ints) -> Tensor:
    piece, row = torch.from_numpy(piece_RS), torch.from_numpy(row_RS)
    sees = (piece[:, :, None] == piece[:, None]) & ((row[:, None] == -1) | (row[:, :, None] == row[:, None]))
    mask = torch.zeros(sees.shape).masked_fill_(~sees.tril_(), -torch.inf)
    return mask[:, None]


# -- whether a network takes packs ------------------------------------------------------------------------------------

_known: dict[tuple[type, str], bool] = {}


def takes_packed_rows(network: Network) -> bool:
    """Whether a network learns the same from packs as from padded rows: its twin does, and its own states agree."""
    size = int(network.config.get_text_config().vocab_size)
    return learns_packed(network.model) and _agree(network, _FEW, size)


def learns_packed(model: PreTrainedModel) -> bool:
    """Whether a small float32 twin of the same class and settings learns alike; False without a twin.

    Compares states and all gradients, in training mode. The model itself is not run and needs no storage.
    """
    slot = type(model), model.config.to_json_string(use_diff=False)
    if slot not in _known:
        twin = make_twin(model)
        _known[slot] = twin is not None and _learns_alike(Network(twin))
    return _known[slot]


def _learns_alike(twin: Network) -> bool:
    room = max_positions(twin.config)
    lengths = _LENGTHS[: 1 if room is not None and room < 3 * LIMIT else 2]
    return twin.takes_positions and all(_agree(twin, n, VOCABULARY, backwards=True) for n in lengths)


def _agree(network: Network, lengths: Sequence[int], size: int, *, backwards: bool = False) -> bool:
    """Compare states, and the gradients of a sum of them, of four answers to each prompt in packs and padded."""
    rng = np.random.default_rng(0)
    prompts = [prompt for n in lengths for prompt in [rng.integers(0, size, n).tolist()] * 4]
    answers = [rng.integers(0, size, n).tolist() for _ in lengths for n in (4, 1, 3, 4)]
    blank = [max(lengths) + 4 - len(p) - len(a) for p, a in zip(prompts, answers, strict=True)]
    ids_BT = torch.tensor([p + a + [0] * n for p, a, n in zip(prompts, answers, blank, strict=True)])
    labels_BT = torch.tensor(
        [[IGNORED] * len(p) + a + [IGNORED] * n for p, a, n in zip(prompts, answers, blank, strict=True)]
    )
    rows, model, was = pack(ids_BT, labels_BT), network.model, network.model.training
    assert rows is not None  # answers that share a prompt are packed
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(backwards):
        torch.manual_seed(0)
        model.train()
        try:
            padded_MD = network.body(ids_BT)[:, :-1][labels_BT[:, 1:] != IGNORED]
            packed_MD = packed_states(network, rows)
        except HydrometerError:  # the network does not take its rows in this way
            return False
        finally:
            model.train(was)
        pairs = [(padded_MD, packed_MD)]
        if backwards:
            noise = torch.randn(padded_MD.shape)
            pairs.append((_gradient(padded_MD, noise, parameters), _gradient(packed_MD, noise, parameters)))
    return all(bool((b - a).abs().max() <= _TOLERANCE * a.abs().max()) for a, b in pairs)


def _gradient(states_MD: Tensor, noise_MD: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad((states_MD * noise_MD).sum(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])
