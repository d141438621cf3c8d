"""Decoding answers after their prompt, and encoding texts after a prompt.

Tokenizers treat an answer differently without its prompt: many add a space before the first word, and strip one from
the first decoded word. So ids are decoded, and a text is encoded, together with the prompt, whose part is then removed.

If a token of the joint encoding spans the end of the prompt, there is no token boundary. The prompt then keeps its ids,
which condition the model, and the answer's ids are taken from behind another beginning (such as a line break) after
which they decode to the text. Such an answer is not `joined`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.loading.model_files import as_data_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["UNREADABLE", "PromptEnd", "Spelling", "prompt_ends", "prompt_text"]

UNREADABLE = "\ufffd"
"""A decoder's replacement for invalid bytes."""
_BEGINNINGS = ("\n", " ", ".", "a", "0")
_PROBES = ("x", "a", "e", "0", ".")

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A text in a tokenizer's ids.

    Attributes
    ----------
    ids : of the text, after its prompt.
    round_trip : whether the ids, decoded after the prompt, give the text.
    joined : whether they are part of the tokenizer's encoding of prompt and text.
    """

    ids: Ids
    round_trip: bool
    joined: bool


@dataclass(frozen=True, eq=False)
class PromptEnd:
    """The end of one prompt, where an answer begins.

    Parameters
    ----------
    tokenizer : of the prompt.
    prompt : its ids.
    written : its encoded text, without special tokens that the tokenizer adds; None if unknown.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: Ids
    written: str | None
    _before: dict[bool, str] = field(default_factory=dict[bool, str])
    _lead: dict[bool, str] = field(default_factory=dict[bool, str])
    _known: dict[tuple[str, bool], Ids] = field(default_factory=dict[tuple[str, bool], Ids])

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Decode ids after the prompt.

        Parameters
        ----------
        special : write special tokens; else omit them.

        Raises
        ------
        DataError : the tokenizer refuses the ids.
        """
        text = self._difference(ids, special)
        lead = self._written_lead(special)
        return text[len(lead) :] if lead and text.startswith(lead) else text

    def encode(self, text: str, *, special: bool = False) -> Spelling:
        """Encode a text after the prompt.

        Parameters
        ----------
        special : parse special tokens in the text; else they are plain text.

        Raises
        ------
        DataError : the tokenizer refuses the text.
        """
        if not text:
            return Spelling((), True, True)
        if (own := self._own(text)) is not None and (special or self._special.isdisjoint(own)):
            return Spelling(own, self.decode(own, special=special) == text, True)
        found: list[Ids] = []
        for ids, joined in self._others(text, special):
            if self.decode(ids, special=special) == text:
                return Spelling(ids, True, joined)
            found.append(ids)
        # None decodes to the text: take the first without control tokens.
        said = next((ids for ids in found if special or self._special.isdisjoint(ids)), found[-1])
        return Spelling(said, False, False)

    def _own(self, text: str) -> Ids | None:
        """Ids after the prompt's in the tokenizer's encoding of both; None if the prompt's are no prefix."""
        return None if self.written is None else self._following(self.written, text, split=False)

    def _others(self, text: str, special: bool) -> Iterator[tuple[Ids, bool]]:
        """Other encodings of the text, each with whether prompt and text have a token boundary."""
        if self.written is not None:
            if not special and (ids := self._following(self.written, text, split=True)) is not None:
                yield ids, True
            if (ids := _behind(self.tokenizer, self.written, text, split=not special)) is not None:
                yield ids, True
        for beginning in _BEGINNINGS:
            if (ids := self._following(beginning, text, split=not special)) is not None:
                yield ids, False
        yield _encode(self.tokenizer, text, split=not special), False

    def _following(self, before: str, text: str, *, split: bool) -> Ids | None:
        """Ids of `before` and `text` together without those of `before`; None if these are no prefix."""
        if (before, split) not in self._known:
            self._known[before, split] = _encode(self.tokenizer, before, split=split)
        own, whole = self._known[before, split], _encode(self.tokenizer, before + text, split=split)
        return whole[len(own) :] if whole[: len(own)] == own else None

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids of control tokens; the unknown token counts as text."""
        known = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        known |= set(self.tokenizer.all_special_ids)
        if isinstance(unknown := self.tokenizer.unk_token_id, int):
            known.discard(unknown)
        return frozenset(known)

    def _difference(self, ids: Sequence[int], special: bool) -> str:
        """Text of prompt and ids, without the prompt's text."""
        if special not in self._before:
            self._before[special] = _decode(self.tokenizer, self.prompt, special)
        before, whole = self._before[special], _decode(self.tokenizer, [*self.prompt, *ids], special)
        for start in (before, before.rstrip(UNREADABLE)):  # an answer may complete a character
            if whole.startswith(start):
                return whole[len(start) :]
        # The ids change how the prompt's end decodes: take their own text, with the space before it.
        alone = _decode(self.tokenizer, ids, special)
        ahead = whole[: len(whole) - len(alone)] if whole.endswith(alone) else ""
        return " " + alone if ahead.endswith(" ") and not before.endswith(" ") else alone

    def _written_lead(self, special: bool) -> str:
        """A space that decoding adds before every answer.

        Tokenizers that begin every stretch of text with a space do so after a special token.
        """
        if special not in self._lead:
            self._lead[special] = self._probe(special) if self.written is not None else ""
        return self._lead[special]

    def _probe(self, special: bool) -> str:
        for probe in _PROBES:
            ids = self._own(probe)
            text = "" if ids is None else self._difference(ids, special)
            if text == probe:
                return ""
            lead = text.removesuffix(probe)
            if text.endswith(probe) and lead.isspace() and self._own(text) != ids:
                return lead
        return ""


def prompt_ends(prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> list[PromptEnd]:
    """Return the end of every prompt, (P,).

    Parameters
    ----------
    prompts : without their encoded text, it is recovered from the ids if possible.
    """
    written = prompts.written
    texts = [prompt_text(ids, tokenizer) for ids in prompts.ids] if written is None else written
    return [PromptEnd(tokenizer, ids, text) for ids, text in zip(prompts.ids, texts, strict=True)]


def prompt_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a text that encodes to these ids, without tokens that the tokenizer adds; None if there is none."""
    wanted = tuple(ids)
    whole, rest = (_decode(tokenizer, part, True) for part in (wanted, wanted[1:]))
    with as_data_error("the tokenizer refuses a prompt", whole):
        for text in (whole, rest):
            if tuple(tokenizer(text)["input_ids"]) == wanted:
                return text
    return whole if _encode(tokenizer, whole, split=False) == wanted else None


def _decode(tokenizer: Any, ids: Sequence[int], special: bool) -> str:
    with as_data_error("the tokenizer refuses ids of an answer", list(ids)):
        return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def _encode(tokenizer: Any, text: str, *, split: bool) -> Ids:
    """Ids of a text without added tokens; `split`: special tokens in it are plain text."""
    options: dict[str, bool] = {"split_special_tokens": True} if split else {}
    with as_data_error("the tokenizer refuses a text", text):
        return tuple(int(t) for t in tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def _behind(tokenizer: Any, before: str, text: str, *, split: bool) -> Ids | None:
    """Ids of `text` in the encoding of `before` and `text`; None if a token spans both."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    options: dict[str, bool] = {"split_special_tokens": True} if split else {}
    with as_data_error("the tokenizer refuses a text", text):
        found = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, **options)
    spans = [(int(a), int(b)) for a, b in found["offset_mapping"]]
    first = next((i for i, (_, end) in enumerate(spans) if end > len(before)), len(spans))
    if first == len(spans) or spans[first][0] < len(before):
        return None
    return tuple(int(t) for t in found["input_ids"][first:])
