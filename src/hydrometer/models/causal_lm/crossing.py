"""A teacher of another tokenizer than the chain's: asked in its own ids, its rows cross to the chain's as text.

The outcome that crosses is a text and whether it ended. The teacher draws until its own stop set, or to max_new_tokens
of its own tokens; the text is then encoded behind the chain's prompt with the chain's tokenizer, and one stop token of
the chain's follows where it ended. A text that was cut stays without one, and so does one that is longer than
max_new_tokens in the chain's tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from hydrometer.core.errors import InputError, LawMismatchError, SpecError
from hydrometer.models.causal_lm.data.parts import Kept, prompts_of, source_digest
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.level_spec import FromLayers
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.opening import judged_among, judged_prompts, open_tokenizer, outline_of
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.causal_lm.text_rows import encoded_rows, stop_of
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["OtherTeacher", "check_other", "cross", "other_teacher", "written_by"]


@dataclass(frozen=True, slots=True, eq=False)
class OtherTeacher:
    """A teacher as it is, of another tokenizer than the chain's.

    Attributes
    ----------
    outline : its config and tokenizer.
    vocabulary : hash of its vocabulary.
    prompts, judged : the chain's prompts in its own ids, by its own chat template: those that students are trained on,
        and those that models are judged on where they are others.
    stop_ids : its own stop set.
    """

    outline: load.Outline
    vocabulary: str
    prompts: Prompts
    judged: Prompts | None
    stop_ids: tuple[int, ...]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own."""
        return self.outline.tokenizer

    @property
    def identity(self) -> dict[str, object]:
        """What its law depends on besides its weights."""
        judged = None if self.judged is None else self.judged.digest
        return {"prompts": self.prompts.digest, "judged": judged, "stop_ids": list(self.stop_ids), "crosses": 1}

    def kept(self, chain: CausalLMChain) -> Kept:
        """Return its prompts as a run keeps them."""
        return Kept(_source(chain, self.vocabulary), self.prompts, self.judged)


def other_teacher(chain: CausalLMChain) -> OtherTeacher | None:
    """Return the chain's teacher where it is a model as it is of another vocabulary; else None.

    Raises
    ------
    InputError : its tokenizer cannot write the chain's prompts.
    """
    named = chain.given_teacher
    if named is None:
        return None
    from hydrometer.models.causal_lm.inference.opened import model_stop_ids
    from hydrometer.models.causal_lm.inference.served_source import find_source

    outline = outline_of(find_source(named.source, named.revision))
    vocabulary = _vocabulary(outline.tokenizer)
    if vocabulary == _vocabulary(outline_of(find_source(chain.truth.source, chain.truth.revision)).tokenizer):
        return None
    kept = cast("Kept | None", chain.truth.kept_prompts)
    mine = None if kept is None else kept.teacher
    if mine is not None:
        mine = replace(mine, source=source_digest(chain.truth)) if mine.source == _source(chain, vocabulary) else None
    try:
        prompts, apart = prompts_of(chain.truth.with_kept(mine), outline.tokenizer)
        judged = judged_among(chain.truth, prompts, apart)
    except InputError as e:
        raise type(e)(f"the teacher cannot be asked the prompts: {e}", fix="") from None
    stop_ids = model_stop_ids(outline.generation_config, outline.tokenizer)
    return OtherTeacher(outline, vocabulary, prompts, judged, stop_ids)


@lru_cache(maxsize=16)
def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    from hydrometer.models.causal_lm.inference.opened import vocabulary_hash

    return vocabulary_hash(tokenizer)


def _source(chain: CausalLMChain, vocabulary: str) -> str:
    return hashlib.sha256(json.dumps([source_digest(chain.truth), vocabulary]).encode()).hexdigest()


def written_by(
    chain: CausalLMChain, role: str, purpose: Literal["train", "judge"]
) -> tuple[PreTrainedTokenizerBase, Prompts, tuple[int, ...]]:
    """Return tokenizer, prompts and stop set of the stored rows that a model drew for a purpose.

    A teacher's rows of another tokenizer are stored in its own ids where they are judged, and in the chain's, to which
    they crossed, where they are trained on.
    """
    other = other_teacher(chain) if role == "teacher" and purpose == "judge" else None
    if other is not None:
        return other.tokenizer, other.judged or other.prompts, other.stop_ids
    tokenizer, prompts, stop_ids = open_tokenizer(chain)
    judged = judged_prompts(chain.truth) if purpose == "judge" else None
    return tokenizer, judged or prompts, stop_ids


def cross(chain: CausalLMChain, other: OtherTeacher, rows: Sequences) -> tuple[Sequences, Mapping[str, object]]:
    """Return rows that the teacher drew in the chain's ids, and how many of them are not what they were.

    Returns
    -------
    Rows whose log-probability is not known: zero. Counts: `rows`; `changed`, whose text the chain's tokenizer does not
    give back, or which held invalid bytes, kept as the text that it gives; `respelled`, whose ids are not the teacher's
    own encoding of their text, which crosses unchanged; `cut`, without an end; `tokens`, of the teacher.

    Raises
    ------
    DataError : a tokenizer refuses a text.
    """
    from hydrometer.models.causal_lm.data.answer_text import prompt_ends
    from hydrometer.models.causal_lm.inference.retokenize import texts_of

    texts = texts_of(rows, other.prompts, other.tokenizer)
    tokenizer, prompts, stop_ids = open_tokenizer(chain)
    end = stop_of(tokenizer, stop_ids), chain.truth.max_new_tokens
    found, round_trip = encoded_rows((texts.texts, texts.prompt_index, texts.ended), prompts, tokenizer, end)
    unreadable = np.zeros(len(rows), np.bool_) if texts.unreadable is None else texts.unreadable
    theirs = prompt_ends(other.prompts, other.tokenizer)
    respelled = sum(
        theirs[int(rows.prompt_index[i])].encode(text).ids != tuple(rows.row(i)[: rows.lengths[i] - rows.stopped[i]])
        for i, text in enumerate(texts.texts)
    )
    counts = {
        "rows": len(rows),
        "changed": int((~round_trip | unreadable).sum()),
        "respelled": int(respelled),
        "cut": int((~found.stopped).sum()),
        "tokens": int(rows.lengths.sum()),
    }
    return found, {"crossed": counts}


def check_other(chain: CausalLMChain, other: OtherTeacher) -> None:
    """Refuse what needs the teacher's vocabulary to be the chain's.

    Raises
    ------
    SpecError : rows chosen among candidates; a start from the teacher's layers; too little room in the teacher.
    LawMismatchError : a prompt that its tokenizer cannot write, no stop token, or a tokenizer that is not its own.
    """
    named = "" if chain.given_teacher is None else chain.given_teacher.source
    fix = "take a teacher of the students' own tokenizer"
    chooses = next((s for s in (*chain.selectivity, *chain.controls) if s.chooses), None)
    if chooses is not None:
        what = "rows of a teacher of another tokenizer are not chosen among candidates, nor are its students judged so"
        raise SpecError(what, got=chooses.label, fix="leave best_of and accept out, or " + fix)
    first = next(iter(chain.level_specs), "student")
    init = chain.level_specs[first].init
    if init == "above" or (isinstance(init, FromLayers) and init.layers_of == "above"):
        what = f"{first}: the teacher's weights are of another vocabulary, and nothing starts from them"
        raise SpecError(what, got=init if isinstance(init, str) else init.model_dump(), fix=f"name an init, or {fix}")
    unknown = other.tokenizer.unk_token_id
    for ids, text in zip(other.prompts.ids, other.prompts.texts, strict=True):
        if isinstance(unknown, int) and unknown in ids:
            raise LawMismatchError("the teacher's tokenizer cannot write a prompt", got=text, fix=fix)
    if not other.stop_ids:
        raise LawMismatchError("the teacher has no stop token, so none of its answers ends", got=named, fix=fix)
    rows = int(other.outline.config.get_text_config().vocab_size)
    if rows <= (last := max(other.tokenizer.get_vocab().values())):
        what = "the teacher has fewer output rows than its tokenizer has ids"
        raise LawMismatchError(what, got=(rows, last + 1), fix="give it its own tokenizer")
    from hydrometer.models.causal_lm.networks.network import max_positions

    room = max_positions(other.outline.config)
    asked = (*other.prompts.ids, *(() if other.judged is None else other.judged.ids))
    longest = max(len(p) for p in asked) + chain.truth.max_new_tokens
    if room is not None and longest > room:
        what = "prompt and answer exceed the teacher's max_position_embeddings"
        raise SpecError(what, got=(longest, room), fix="shorten the prompts or max_new_tokens")
