"""Scores texts under a model that did not write them, by the canonical tokenisation.

An outcome here is a text and whether it ended. Many token sequences give one text; the tokenizer's encoding after the
prompt is the canonical one (`answer_text`). Its score is a lower bound,

    log q(canonical(x), stop | prompt)  <=  log Q(x ends here | prompt)

where Q sums over all token sequences that decode to x after the prompt. The same holds for a cut text, with "begins
with x" for "ends here" and no stop. The bound holds for texts that survive encoding and decoding (`round_trip`). Limits
on the network's own tokens, such as max_new_tokens, do not matter.

Shapes: N texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import StageError
from hydrometer.models.causal_lm.data.answer_text import UNREADABLE, prompt_ends
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Canonical", "Texts", "canonical", "texts_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts that answer prompts.

    Attributes
    ----------
    texts : (N,) without special tokens.
    ended : (N,) bool, whether the text ended; else it was cut, and only its beginning is known.
    prompt_index : (N,) int64, the prompt that each answers.
    unreadable : (N,) bool, whether invalid bytes were drawn, which the text lacks; None for nowhere.
    first : number of the first text, where these are a block of more.
    """

    texts: tuple[str, ...]
    ended: NDArray[np.bool_]
    prompt_index: NDArray[np.int64]
    unreadable: NDArray[np.bool_] | None = None
    first: int = 0

    def block(self, start: int, n: int) -> Texts:
        """Return texts ``start .. start + n``."""
        rows = slice(start, start + n)
        unreadable = None if self.unreadable is None else self.unreadable[rows]
        return Texts(self.texts[rows], self.ended[rows], self.prompt_index[rows], unreadable, self.first + start)

    @property
    def n_bytes(self) -> Floats:
        """(N,) bytes of UTF-8; the end has none."""
        return np.array([len(t.encode()) for t in self.texts], np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Canonical:
    """Texts in one tokenizer's own tokens, with their scores.

    Attributes
    ----------
    rows : the token ids, the stop token included where the text ended.
    log_prob : (N,) nats; -inf where a selectivity leaves a token of the canonical tokenisation out.
    round_trip : (N,) 1.0 where the tokens decode to the text, and the text has all drawn bytes.
    spans : (N,) 1.0 where a token spans the end of the prompt.
    """

    rows: Sequences
    log_prob: Floats
    round_trip: Floats
    spans: Floats


def texts_of(rows: Sequences, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Decode drawn rows. A character broken by the cut is left out."""
    ends = prompt_ends(prompts, tokenizer)
    texts: list[str] = []
    unreadable = np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        end, ids, stopped = ends[int(rows.prompt_index[i])], rows.row(i).tolist(), bool(rows.stopped[i])
        said = ids[:-1] if stopped else ids
        text = end.decode(said)
        if UNREADABLE in text and end.encode(text).ids != tuple(said):  # else the character itself was drawn
            text = text if stopped else text.rstrip(UNREADABLE)
            unreadable[i] = UNREADABLE in text
        texts.append(text)
    return Texts(tuple(texts), rows.stopped, rows.prompt_index, unreadable)


def canonical(texts: Texts, law: CausalLaw | ServedLaw) -> Canonical:
    """Encode texts with the law's tokenizer after their prompts, and score them.

    A text that ended gets one stop token: the tokenizer's end of sequence if it is in the stop set, else its least id.

    Raises
    ------
    StageError : a text with its prompt exceeds the model's positions, the stop set is empty, or a score is NaN.
    DataError : the tokenizer refuses a text.
    """
    ends = prompt_ends(law.prompts, law.lm.tokenizer)
    stop = _stop(law) if bool(texts.ended.any()) else -1
    encoded: list[list[int]] = []
    round_trip, spans = np.zeros(len(texts.texts)), np.zeros(len(texts.texts))
    for i, text in enumerate(texts.texts):
        found = ends[int(texts.prompt_index[i])].encode(text)
        round_trip[i] = found.round_trip and (texts.unreadable is None or not texts.unreadable[i])
        spans[i] = not found.joined
        encoded.append([*found.ids, stop] if texts.ended[i] else list(found.ids))
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    _check_room(law, lengths, texts)
    ids_NT = np.zeros((len(encoded), int(lengths.max(initial=1))), np.int64)
    for i, ids in enumerate(encoded):
        ids_NT[i, : len(ids)] = ids
    zeros = np.zeros(len(encoded))
    rows = Sequences(
        law.prompts.ids, texts.prompt_index, ids_NT, lengths, texts.ended, zeros, prompts_are=law.prompts.are
    )
    log_prob = law.token_log_prob(rows).sum(-1)
    if np.isnan(log_prob).any() or np.isposinf(log_prob).any():
        raise StageError("scores of texts hold NaN or +inf", fix="the model diverged or its weights are broken")
    return Canonical(replace(rows, log_prob=log_prob), log_prob, round_trip, spans)


def _stop(law: CausalLaw | ServedLaw) -> int:
    if not law.stop_ids:
        raise StageError("the model has no stop token, so no text ends under it", fix="give a model with one")
    own: object = law.lm.tokenizer.eos_token_id
    return own if isinstance(own, int) and own in law.stop_ids else law.stop_ids[0]


def _check_room(law: CausalLaw | ServedLaw, lengths: NDArray[np.int64], texts: Texts) -> None:
    room = law.room
    if room is None:
        return
    prompt = np.array([len(p) for p in law.prompts.ids], np.int64)[texts.prompt_index]
    worst = int((prompt + lengths).argmax())
    if prompt[worst] + lengths[worst] > room:
        what = f"text {texts.first + worst + 1} with its prompt exceeds the model's max_position_embeddings"
        raise StageError(what, got=(int(prompt[worst] + lengths[worst]), room), fix="shorten it or leave it out")
