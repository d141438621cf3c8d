"""Llama-type networks run on an accelerator from their own weights: prompts, decode steps and packed rows.

Shapes: U prompts of at most S tokens, B rows of R for each prompt, T places of a row, M tokens, D width, H query heads
on G key heads of size d, W rows of the output matrix.

What `cpu.llama` does on packed tokens is done here by torch's operations on the device. Of a step nothing has a shape
or an address that changes with the row: its place is a tensor, so a CUDA graph replays it. A prompt's keys lie once for
all of its rows. The residual stream is float32, and so are norms, rotations and attention's scores. The same code runs
on the processor, where tests compare it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hydrometer.models.causal_lm.cpu.llama import llama_twin, same_logits

__all__ = ["Attend", "DeviceLlama", "PromptKeys", "RowKeys"]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of a layer: its index, queries (M, H, d), and the same tokens' keys and values (M, G, d), to (M, H, d)."""

_PROMPT_TOKENS = 1 << 16  # of prompts run at once, padded


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """Keys and values of U prompts, (U, G, S, d) a layer; lengths (U,); states (U, D) at their last tokens."""

    keys: list[Tensor]
    values: list[Tensor]
    length: Tensor
    states: Tensor

    def take(self, prompts: Tensor) -> PromptKeys:
        """Return some of them, as copies."""
        return PromptKeys(
            [k[prompts] for k in self.keys],
            [v[prompts] for v in self.values],
            self.length[prompts],
            self.states[prompts],
        )


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Keys and values of B rows, one pair a layer, (B, G, T, d)."""

    keys: list[Tensor]
    values: list[Tensor]

    def take(self, rows: Tensor) -> RowKeys:
        """Return some rows, as copies."""
        return RowKeys([k[rows] for k in self.keys], [v[rows] for v in self.values])


@dataclass(frozen=True, slots=True)
class _Layer:
    norm_in: Tensor
    norm_mid: Tensor
    norm_q: Tensor | None
    norm_k: Tensor | None
    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class DeviceLlama:
    """A Llama-type network's weights where the network is, with the matrices of one input stacked.

    Parameters
    ----------
    model : of a type that `cpu.llama.Llama.recognise` knows, on any device.
    holes : ids that do not exist; their logits are -inf.
    """

    def __init__(self, model: PreTrainedModel, holes: Tensor | None = None) -> None:
        config: Any = model.config
        body: Any = model.base_model
        head: Any = model.get_output_embeddings()
        self.device, self.dtype = model.device, model.dtype
        self.heads, self.groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.size = int(body.layers[0].self_attn.head_dim)
        self._scale = float(body.layers[0].self_attn.scaling)
        self._epsilon = float(config.rms_norm_eps)
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._head = _stacked([head])
        self._norm_out = _weight(body.norm)
        self._holes = None if holes is None else holes.to(self.device)
        self._rotary: Any = body.rotary_emb
        self._angles: tuple[Tensor, Tensor] | None = None
        self._layers = [
            _Layer(
                _weight(x.input_layernorm),
                _weight(x.post_attention_layernorm),
                _weight(getattr(x.self_attn, "q_norm", None)),
                _weight(getattr(x.self_attn, "k_norm", None)),
                _stacked([x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj]),
                _stacked([x.self_attn.o_proj]),
                _stacked([x.mlp.gate_proj, x.mlp.up_proj]),
                _stacked([x.mlp.down_proj]),
            )
            for x in body.layers
        ]

    @staticmethod
    @torch.no_grad()
    def agrees(model: PreTrainedModel) -> bool:
        """Whether this class gives the logits of a small float32 twin of the network, where the network is."""
        twin: Any = llama_twin(model)
        if twin is None:
            return False
        ids, begun = tuple(range(5, 17)), 5
        here = DeviceLlama(twin.to(model.device))
        prompts = here.prompts([ids[:begun]])
        here.prepare(len(ids))
        keys = here.row_keys(1, len(ids))
        states = [prompts.states]
        for place, token in enumerate(ids[begun:]):
            at = torch.tensor([place], device=here.device)
            states.append(here.step(torch.tensor([token], device=here.device), at, len(ids), keys, prompts))
        return same_logits(here.logits(torch.cat(states)), twin, ids, begun - 1)

    # -- the network --------------------------------------------------------------------------------------------------

    def prepare(self, positions: int) -> None:
        """Compute the rotary angles of so many positions; before a step is captured."""
        if self._angles is None or len(self._angles[0]) < positions:
            at = torch.arange(positions, device=self.device)[None]
            cos, sin = self._rotary(torch.empty(0, dtype=torch.float32, device=self.device), at)
            self._angles = cos[0].float(), sin[0].float()

    def forward(self, ids_M: Tensor, position_M: Tensor, attend: Attend) -> Tensor:
        """Run all but the head on M tokens at given positions, below `prepare`'s; (M, D) states for `logits`."""
        assert self._angles is not None
        turns = tuple(x[position_M][:, None] for x in self._angles)
        m = len(ids_M)
        residual = F.embedding(ids_M, self._embedding).float()
        for i, layer in enumerate(self._layers):
            x = self._normed(residual, layer.norm_in).to(self.dtype)
            heads = F.linear(x, *layer.qkv).view(m, -1, self.size)
            q, k, v = heads.split([self.heads, self.groups, self.groups], dim=1)
            q, k = (
                self._turned(self._normed(h.float(), norm), turns).to(self.dtype)
                for h, norm in ((q, layer.norm_q), (k, layer.norm_k))
            )
            residual = residual + F.linear(attend(i, q, k, v).reshape(m, -1), *layer.out)
            x = self._normed(residual, layer.norm_mid).to(self.dtype)
            gate, up = F.linear(x, *layer.gate_up).float().chunk(2, dim=-1)
            residual = residual + F.linear((F.silu(gate) * up).to(self.dtype), *layer.down)
        return self._normed(residual, self._norm_out).to(self.dtype)

    def logits(self, states_MD: Tensor) -> Tensor:
        """Logits of every row of the output matrix, (M, W)."""
        logits = F.linear(states_MD, *self._head)
        return logits if self._holes is None else logits.index_fill(1, self._holes, -torch.inf)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else F.rms_norm(x, weight.shape, weight, self._epsilon)

    @staticmethod
    def _turned(x: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        cos, sin = turns
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    # -- prompts ------------------------------------------------------------------------------------------------------

    def prompts(self, prompts: Sequence[tuple[int, ...]]) -> PromptKeys:
        """Run U prompts, each once, padded on the right: no token sees what comes after it."""
        length = torch.tensor([len(p) for p in prompts])
        longest, width = int(length.max()), len(self._layers)
        self.prepare(longest)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for u, p in enumerate(prompts):
            ids[u, : len(p)] = torch.tensor(p)
        ids = ids.to(self.device)
        shape = len(prompts), self.groups, longest, self.size
        whole = [[torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(width)] for _ in range(2)]
        states: list[Tensor] = []
        step = max(1, _PROMPT_TOKENS // longest)
        for at in range(0, len(prompts), step):
            part = slice(at, min(at + step, len(prompts)))
            n = part.stop - at

            def attend(i: int, q: Tensor, k: Tensor, v: Tensor, part: slice = part, n: int = n) -> Tensor:
                q, k, v = (x.reshape(n, longest, -1, self.size).transpose(1, 2) for x in (q, k, v))
                whole[0][i][part], whole[1][i][part] = k, v
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale, enable_gqa=True)
                return out.transpose(1, 2).reshape(n * longest, -1, self.size)

            position = torch.arange(longest, device=self.device).repeat(n)
            found = self.forward(ids[part].reshape(-1), position, attend).view(n, longest, -1)
            states.append(found[torch.arange(n, device=self.device), (length[part] - 1).to(self.device)])
        return PromptKeys(whole[0], whole[1], length.to(self.device), torch.cat(states))

    # -- a step of drawing --------------------------------------------------------------------------------------------

    def row_keys(self, rows: int, room: int) -> RowKeys:
        """Make an empty cache of B rows of T places; zeros, since what is masked is still multiplied by nothing."""
        shape, n = (rows, self.groups, room, self.size), len(self._layers)
        keys, values = ([torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(n)] for _ in range(2))
        return RowKeys(keys, values)

    def step(self, ids_B: Tensor, place: Tensor, span: int, rows: RowKeys, prompts: PromptKeys) -> Tensor:
        """Append a token to every row; (B, D) states. No shape depends on `place`.

        Parameters
        ----------
        ids_B : the B = U R rows of U prompts, a prompt's rows side by side.
        place : (1,) int64, place of the tokens in their rows.
        span : places that attention looks at; above `place`.
        """
        u, r, group = len(prompts.length), len(ids_B) // len(prompts.length), self.heads // self.groups
        s = prompts.keys[0].shape[2]
        in_prompt_US = torch.arange(s, device=self.device) < prompts.length[:, None]
        said_T = torch.arange(span, device=self.device) <= place

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for cache, new in ((rows.keys[i], k), (rows.values[i], v)):
                cache.index_copy_(2, place, new[:, :, None])
            own_k, own_v = rows.keys[i][:, :, :span], rows.values[i][:, :, :span]
            own_q = q.view(u * r, self.groups, group, self.size)
            shared_q = (
                own_q.view(u, r, self.groups, group, self.size).transpose(1, 2).reshape(u, self.groups, -1, self.size)
            )
            before = _products(shared_q, prompts.keys[i].mT) * self._scale
            before = before.masked_fill(~in_prompt_US[:, None, None], -torch.inf)
            own = (_products(own_q, own_k.mT) * self._scale).masked_fill(~said_T, -torch.inf)
            own = own.view(u, r, self.groups, group, span).transpose(1, 2).reshape(u, self.groups, r * group, span)
            weights = torch.cat([before, own], dim=-1).softmax(-1)
            out = _products(weights[..., :s].to(self.dtype), prompts.values[i])
            own = weights[..., s:].view(u, self.groups, r, group, span).transpose(1, 2)
            own = own.reshape(u * r, self.groups, group, span).to(self.dtype)
            out = out.view(u, self.groups, r, group, self.size).transpose(1, 2).reshape(u * r, self.heads, self.size)
            return (out + _products(own, own_v).view(u * r, self.heads, self.size)).to(self.dtype)

        position_B = (prompts.length[:, None] + place).expand(u, r).reshape(-1)
        return self.forward(ids_B, position_B, attend)

    @property
    def packs(self) -> bool:
        """Whether `packed` runs here: attention of variable length on CUDA takes bfloat16 alone."""
        return self.device.type == "cpu" or self.dtype == torch.bfloat16

    # -- packed rows --------------------------------------------------------------------------------------------------

    def packed(self, rows: Sequence[Tensor], of_B: Sequence[int], prompts: PromptKeys) -> Tensor:
        """States at all tokens of B rows, one after another without padding, (M, D).

        A row attends to its prompt, whose keys lie once, and to itself: two passes of variable length, whose results
        are weighted by their masses.

        Parameters
        ----------
        rows : ids. of_B : the prompt of each; rows of one prompt stand together.
        """
        length_B = torch.tensor([len(x) for x in rows])
        ends = _ends(length_B, self.device)
        used, per = torch.tensor(of_B).unique_consecutive(return_counts=True)
        answers = _ends(torch.stack([x.sum() for x in length_B.split(per.tolist())]), self.device)
        length_U = prompts.length.cpu()[used]
        befores = _ends(length_U, self.device)
        inside = torch.arange(int(prompts.length.max()), device=self.device) < length_U.to(self.device)[:, None]
        place_M = torch.cat([torch.arange(n) for n in length_B.tolist()])
        position_M = (prompts.length.cpu()[torch.tensor(of_B)].repeat_interleave(length_B) + place_M).to(self.device)
        self.prepare(int(position_M.max()) + 1)
        taken = used.to(self.device)

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (x[i][taken].transpose(1, 2)[inside] for x in (prompts.keys, prompts.values))
            a, mass_a = attend_packed(q, keys, values, answers, befores, causal=False, scale=self._scale)
            b, mass_b = attend_packed(q, k, v, ends, ends, causal=True, scale=self._scale)
            share = torch.sigmoid(mass_a - mass_b)[..., None]
            return (a.float() * share + b.float() * (1 - share)).to(self.dtype)

        return self.forward(torch.cat(list(rows)).to(self.device), position_M, attend)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention within segments of packed tokens, and the log of each softmax's sum.

    Parameters
    ----------
    q : (M, H, d). k, v : (N, G, d). ends_q, ends_k : (segments + 1,) int32, where each begins and the last ends.
    causal : token i of a segment sees its first i + 1 keys.

    Returns
    -------
    (M, H, d), and (M, H) float32 nats.
    """
    if q.device.type == "cuda":
        from torch.nn.attention.varlen import AuxRequest, varlen_attn

        most_q, most_k = (int(x.diff().max()) for x in (ends_q, ends_k))
        out, mass = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), ends_q, ends_k, most_q, most_k, scale=scale,
            window_size=(-1, 0) if causal else (-1, -1), enable_gqa=True, return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        return out, mass.T if mass.shape == (q.shape[1], len(q)) else mass
    group = q.shape[1] // k.shape[1]
    outs: list[Tensor] = []
    masses: list[Tensor] = []
    for (a, b), (c, e) in zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True):
        keys, values = (x[c:e].repeat_interleave(group, 1).transpose(0, 1).float() for x in (k, v))
        scores = q[a:b].transpose(0, 1).float() @ keys.mT * scale
        if causal:
            scores = scores.masked_fill(torch.ones(b - a, e - c, dtype=torch.bool).triu(1), -torch.inf)
        outs.append((scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype))
        masses.append(scores.logsumexp(-1).T)
    return torch.cat(outs), torch.cat(masses)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Batched products in float32, of operands as they are."""
    if a.dtype == torch.float32 or a.device.type != "cuda":
        return a.float() @ b.float()
    out = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return out.view(*a.shape[:2], *out.shape[1:])


def _ends(lengths: Tensor, device: torch.device) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)


def _stacked(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One or more matrices of one input, stacked, and their biases."""
    weights = [p.weight.detach() for p in parts]
    biases: list[Tensor | None] = [p.bias for p in parts]
    weight = weights[0] if len(parts) == 1 else torch.cat(weights)
    return weight, None if biases[0] is None else torch.cat([b.detach() for b in biases if b is not None])


def _weight(module: Any) -> Any:
    return None if module is None else module.weight.detach().float()
