"""Texts in the place of a chain's truth: how many rows they are, and which of them are trained on or judged on."""

from __future__ import annotations

from typing import Literal

from hydrometer.core.errors import InputError
from hydrometer.models.capabilities import TextTruth
from hydrometer.models.causal_lm.data.parts import Part, parts_of
from hydrometer.models.causal_lm.opening import open_tokenizer
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.causal_lm.text_rows import encode_texts, rows_of
from hydrometer.models.rows.sequences import Sequences

__all__ = ["held_out", "text_truth", "training_texts"]


def held_out(chain: CausalLMChain) -> Part:
    """Return the texts that a chain's models are judged on. Raises InputError."""
    if chain.truth.text is None:
        raise InputError("the chain's truth is no text")
    trained, judged = parts_of(chain.truth.text)
    return judged or trained


def text_truth(chain: CausalLMChain) -> TextTruth | None:
    """Return how many texts stand in the place of a truth; None where the truth is a model. Raises DataError."""
    if chain.truth.text is None:
        return None
    part, _ = parts_of(chain.truth.text)
    most = chain.data.train, chain.data.validate_
    train, validate = (len(rows_of(part, which, most)) for which in ("train", "validate"))
    judged = held_out(chain)
    return TextTruth(
        train=train,
        validate=validate,
        evaluate=len(judged.answers),
        identity={"text": part.digest},
        judged=judged.digest,
        by_teacher=chain.truth.reference == "teacher",
        are=chain.truth.text.are,
    )


def training_texts(chain: CausalLMChain, which: Literal["train", "validate"]) -> Sequences:
    """Return the texts that models are trained on, or those that choose an epoch, as rows. Raises DataError."""
    if chain.truth.text is None:
        raise InputError("the chain's truth is no text")
    part, _ = parts_of(chain.truth.text)
    tokenizer, prompts, stop_ids = open_tokenizer(chain)
    chosen = rows_of(part, which, (chain.data.train, chain.data.validate_))
    own: object = tokenizer.eos_token_id
    stop = own if isinstance(own, int) and own in stop_ids else stop_ids[0]
    return encode_texts(part, chosen, prompts, tokenizer, (stop, chain.truth.max_new_tokens))
