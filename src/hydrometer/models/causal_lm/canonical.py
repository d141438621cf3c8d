"""Texts under a model that was not the one that wrote them: the canonical tokenisation.

An outcome here is a text and whether it ended. A model says one text by many token sequences; its tokenizer makes one
of them, the canonical. Scoring that one gives a lower bound,

    log q(canonical(x), stop | prompt)  <=  log Q(x ends here | prompt)

Q being the sum over all token sequences that decode to x. The same holds for a text that was cut, with "begins with x"
for "ends here" and no stop. The bound is over texts that the tokenizer gives back as they were; `round_trip` says
which. What the network does with its own tokens (max_new_tokens, a tail after the cut) plays no part.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.clusters import PromptsAre
from hydrometer.core.errors import StageError
from hydrometer.models.causal_lm.answers import Answered
from hydrometer.models.causal_lm.law import CausalLaw
from hydrometer.models.causal_lm.load import as_data_error
from hydrometer.models.causal_lm.prompts import Prompts, encode_prompt, read_prompts
from hydrometer.models.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Canonical", "Texts", "canonical", "encode_prompts", "texts_of"]

Floats = NDArray[np.float64]
_CUT_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts that answer prompts.

    Attributes
    ----------
    texts : (N,) what was said, special tokens left out.
    ended : (N,) bool, whether the text ended there; else it was cut, and only its beginning is known.
    prompt_index : (N,) int64, which prompt each answers.
    """

    texts: tuple[str, ...]
    ended: NDArray[np.bool_]
    prompt_index: NDArray[np.int64]

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
    round_trip : (N,) 1.0 where decoding the tokens gives the text back.
    """

    rows: Sequences
    log_prob: Floats
    round_trip: Floats


def encode_prompts(
    rows: Sequence[Answered], tokenizer: PreTrainedTokenizerBase, *, chat: bool, are: PromptsAre
) -> Prompts:
    """Turn prompts into a tokenizer's ids; whole documents follow the begin-of-sequence token, all one prompt.

    Raises
    ------
    DataError, ModelError : as `read_prompts`.
    """
    if not rows[0].turns:
        return read_prompts(None, tokenizer)
    ids = tuple(encode_prompt(r.messages, chat, tokenizer, r.where) for r in rows)
    return Prompts(ids, tuple(r.turns[-1][1] for r in rows), are)


def texts_of(rows: Sequences, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Decode drawn rows. A character that the cut broke in two is left out: the text before it is what is known."""
    texts: list[str] = []
    for i in range(len(rows)):
        ids = rows.row(i).tolist()
        text = _decode(tokenizer, ids[:-1] if rows.stopped[i] else ids)
        texts.append(text if rows.stopped[i] else text.rstrip(_CUT_CHARACTER))
    return Texts(tuple(texts), rows.stopped, rows.prompt_index)


def canonical(texts: Texts, law: CausalLaw) -> Canonical:
    """Encode texts as the law's tokenizer does, and score them.

    A text that ended gets one stop token: the tokenizer's end of sequence where that is in the stop set, else the
    smallest id there.

    Raises
    ------
    StageError : a text with its prompt exceeds what the model has room for, the stop set is empty, or a score is NaN.
    DataError : the tokenizer refuses a text.
    """
    tokenizer: Any = law.lm.tokenizer
    stop = _stop(law) if bool(texts.ended.any()) else -1
    encoded: list[list[int]] = []
    round_trip = np.zeros(len(texts.texts))
    for i, text in enumerate(texts.texts):
        ids = _encode(tokenizer, text)
        round_trip[i] = _decode(tokenizer, ids) == text
        encoded.append([*ids, stop] if texts.ended[i] else ids)
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    _check_room(law, lengths, texts)
    ids_NT = np.zeros((len(encoded), int(lengths.max(initial=1))), np.int64)
    for i, ids in enumerate(encoded):
        ids_NT[i, : len(ids)] = ids
    zeros = np.zeros(len(encoded))
    rows = Sequences(
        law.prompts.ids, texts.prompt_index, ids_NT, lengths, texts.ended, zeros, prompts_are=law.prompts.are
    )
    log_prob = law.score_steps(rows).selected.sum(-1)
    if np.isnan(log_prob).any() or np.isposinf(log_prob).any():
        raise StageError("scores of texts hold NaN or +inf", fix="the model diverged or its weights are broken")
    return Canonical(replace(rows, log_prob=log_prob), log_prob, round_trip)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    with as_data_error("the tokenizer refuses ids of an answer", ids):
        return cast("str", tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise plain text: what looks like a special token in it is text."""
    with as_data_error("the tokenizer refuses a text", text):
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [int(t) for t in found]


def _stop(law: CausalLaw) -> int:
    if not law.stop_ids:
        raise StageError("the model has no stop token, so no text ends under it", fix="give a model with one")
    own: object = law.lm.tokenizer.eos_token_id
    return own if isinstance(own, int) and own in law.stop_ids else law.stop_ids[0]


def _check_room(law: CausalLaw, lengths: NDArray[np.int64], texts: Texts) -> None:
    room: object = getattr(law.lm.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(room, int):
        return
    prompt = np.array([len(p) for p in law.prompts.ids], np.int64)[texts.prompt_index]
    worst = int((prompt + lengths).argmax())
    if prompt[worst] + lengths[worst] > room:
        what = f"text {worst + 1} with its prompt exceeds the model's max_position_embeddings"
        raise StageError(what, got=(int(prompt[worst] + lengths[worst]), room), fix="shorten it or leave it out")
