"""Texts as rows of a chain: scored under a law in its canonical tokenisation, and encoded as rows to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import DataError
from hydrometer.core.rng import Stream
from hydrometer.models.capabilities import TextScores
from hydrometer.models.causal_lm.data.parts import Part
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.retokenize import Texts
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

__all__ = [
    "answer_texts",
    "encode_texts",
    "encoded_rows",
    "refuse_ends",
    "rows_of",
    "score_drawn",
    "score_held_out",
    "stop_of",
]

_STREAM = Stream(0, ("text", "validate"))


def score_held_out(law: CausalLaw | ServedLaw, part: Part, rows: range) -> TextScores:
    """Score some of a part's texts under a law that is asked its prompts. Raises StageError, DataError."""
    from hydrometer.models.causal_lm.inference.retokenize import Texts

    whole = Texts(part.answers, np.ones(len(part.answers), np.bool_), part.prompt_index)
    return _score(law, whole.block(rows.start, len(rows)))


def score_drawn(
    law: CausalLaw | ServedLaw, rows: Sequences, prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> TextScores:
    """Score rows as texts, drawn after `prompts` by a model of `tokenizer`. Raises StageError, DataError."""
    from hydrometer.models.causal_lm.inference.retokenize import texts_of

    return _score(law, texts_of(rows, prompts, tokenizer))


def _score(law: CausalLaw | ServedLaw, texts: Texts) -> TextScores:
    from hydrometer.models.causal_lm.inference.retokenize import canonical

    found = canonical(texts, law)
    tokens = found.rows.lengths.astype(np.float64)
    return TextScores(found.log_prob, tokens, texts.n_bytes, found.round_trip, found.spans)


def answer_texts(rows: Sequences, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Return prompts and answers of rows as text."""
    from hydrometer.models.causal_lm.data.answer_text import prompt_ends

    ends = prompt_ends(prompts, tokenizer)
    asked = [int(i) for i in rows.prompt_index]
    return [prompts.texts[i] for i in asked], [ends[i].decode(rows.row(k).tolist()) for k, i in enumerate(asked)]


def rows_of(part: Part, which: Literal["train", "validate"], most: tuple[int, int]) -> tuple[int, ...]:
    """Choose the texts that are trained on, or those beside them by which an epoch is chosen: a tenth, by a stream.

    Parameters
    ----------
    most : training and validation texts at most.

    Raises
    ------
    DataError : one text alone.
    """
    n = len(part.answers)
    if n < 2:
        raise DataError("one text to train on leaves none to choose an epoch by", got=n, fix="give more texts")
    order = [int(i) for i in np.argsort(_STREAM.uniforms(0, n, 1)[:, 0], kind="stable")]
    held = min(most[1], max(1, n // 10))
    return tuple(sorted(order[:held] if which == "validate" else order[held : held + most[0]]))


def encode_texts(
    part: Part, chosen: tuple[int, ...], prompts: Prompts, tokenizer: PreTrainedTokenizerBase, end: tuple[int, int]
) -> Sequences:
    """Encode texts behind their prompts, as outcomes of the law that is cut; their log-probability is not known: zero.

    Parameters
    ----------
    end : the stop token, at the end of each text, and max_new_tokens, at which longer ones are cut.

    Raises
    ------
    DataError : the tokenizer refuses a text, or cannot say one behind its prompt.
    """
    index = part.prompt_index[list(chosen)]
    texts = tuple(part.answers[i] for i in chosen)
    refuse_ends(texts, tokenizer, end[:1])
    return encoded_rows((texts, index, np.ones(len(texts), np.bool_)), prompts, tokenizer, end)[0]


def refuse_ends(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
    """Refuse texts that end with a stop token's text: its letters would be learnt, and scored, before the token itself.

    Raises
    ------
    DataError
    """
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | set(tokenizer.all_special_ids)
    for stop in map(str, tokenizer.convert_ids_to_tokens(sorted(special & set(stop_ids)))):
        found = next((t for t in texts if t.endswith(stop)), None)
        if found is not None:
            what = "an answer ends with the text of a stop token, which is added to every answer"
            raise DataError(what, got=found[-60:], fix=f"leave {stop} out of the answers' ends")


def encoded_rows(
    texts: tuple[Sequence[str], NDArray[np.int64], NDArray[np.bool_]],
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    end: tuple[int, int],
) -> tuple[Sequences, NDArray[np.bool_]]:
    """Encode texts as `encode_texts` does, with their prompts, and whether they ended; else no stop token follows.

    Returns
    -------
    The rows, and (N,) whether a row's tokens, before they are cut, decode to its text.
    """
    from hydrometer.models.causal_lm.data.answer_text import prompt_ends

    answers, index, whole = texts
    (stop, longest), ends = end, prompt_ends(prompts, tokenizer)
    found = [ends[int(p)].encode(text) for text, p in zip(answers, index, strict=True)]
    encoded = [[*x.ids, stop] if over else list(x.ids) for x, over in zip(found, whole, strict=True)]
    ended = np.array([len(ids) <= longest for ids in encoded], np.bool_) & whole
    encoded = [ids[:longest] for ids in encoded]
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    ids_NT = np.zeros((len(encoded), int(lengths.max(initial=1))), np.int64)
    for row, ids in zip(ids_NT, encoded, strict=True):
        row[: len(ids)] = ids
    rows = Sequences(prompts.ids, index, ids_NT, lengths, ended, np.zeros(len(encoded)), prompts_are=prompts.are)
    return rows, np.array([x.round_trip for x in found], np.bool_)


def stop_of(tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> int:
    """Return the stop token that ends a text: the tokenizer's end of sequence if it is in the stop set, else the first.

    Raises
    ------
    DataError : the stop set is empty.
    """
    if not stop_ids:
        raise DataError("the stop set is empty, so no text ends", got=stop_ids, fix="name its tokens in truth.stop")
    own: object = tokenizer.eos_token_id
    return own if isinstance(own, int) and own in stop_ids else stop_ids[0]
