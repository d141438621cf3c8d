"""What is asked of a model, and the outcomes that this makes: common to laws of opened and of served models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import InputError, LawMismatchError
from hydrometer.core.shown import Shown
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import Samples
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.finite_selectivity import NO_TILT, refuse_choice
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Outcomes", "Spoken"]


class Spoken(Protocol):
    """A model as far as its vocabulary goes."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, ids from 0 that the tokenizer knows."""
        ...

    @property
    def vocabulary_hash(self) -> str:
        """Hash of every token with its id, and of which are special."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The model's own stop set."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Outcomes(Shown):
    """A model with its prompts, stop set and length.

    Parameters
    ----------
    lm : the model.
    prompts : P prompts.
    stop_ids : E, sorted.
    max_new_tokens : L.
    selectivity : token selectivity, or None.
    block_rows : rows drawn together; the bits of a draw may depend on it.
    """

    lm: Spoken
    prompts: Prompts
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    selectivity: Selectivity | None = None
    block_rows: int = 128

    def _facts(self) -> dict[str, object]:
        return {
            "model": self.lm,
            "selectivity": "" if self.selectivity is None else self.selectivity.label,
            "prompts": len(self.prompts.ids),
            "max_new_tokens": self.max_new_tokens,
            "stop_ids": self.stop_ids,
        }

    @property
    def longest(self) -> int:
        """Maximum positions of prompt and answer."""
        return max(len(p) for p in self.prompts.ids) + self.max_new_tokens

    @property
    def n_prompts(self) -> int:
        """P: row i answers prompt i mod P."""
        return len(self.prompts.ids)

    def compatible(self, other: object) -> None:
        """Raise LawMismatchError unless both are laws over the same outcomes: vocabulary, prompts, E and L."""
        if not isinstance(other, Outcomes):
            raise LawMismatchError("a causal LM is compared with causal LMs", got=type(other).__name__)
        differ = {
            "vocabularies": (self.lm.vocabulary_hash[:12], other.lm.vocabulary_hash[:12]),
            "prompts": (self.prompts.digest[:12], other.prompts.digest[:12]),
            "stop sets": (self.stop_ids, other.stop_ids),
            "max_new_tokens": (self.max_new_tokens, other.max_new_tokens),
        }
        for what, (mine, theirs) in differ.items():
            if mine != theirs:
                fix = "judge models of one tokenizer under the same prompts, stop set and max_new_tokens"
                raise LawMismatchError(f"the laws differ in their {what}", got=(mine, theirs), fix=fix)

    def possible(self, x: Sequences) -> NDArray[np.bool_]:
        """Whether each row is an outcome: no token after a stop, and an end by a stop or the cut, (N,)."""
        at = np.arange(x.ids.shape[1])
        last_N1 = x.lengths[:, None] - 1
        stop_NT = np.isin(x.ids, self.stop_ids)
        early_N = (stop_NT & (at < last_N1)).any(-1)
        ends_N = (stop_NT & (at == last_N1)).any(-1)
        cut_N = x.lengths == self.max_new_tokens
        known_N = ((x.ids >= 0) & (x.ids < self.lm.vocab_size)).all(-1)
        return (ends_N | cut_N) & ~early_N & known_N & (x.lengths >= 1) & (x.lengths <= self.max_new_tokens)

    def texts(self, x: Samples) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text, without special tokens."""
        from hydrometer.models.causal_lm.data.answer_text import prompt_ends

        x = self._answers(x)
        ends = prompt_ends(self.prompts, self.lm.tokenizer)
        answers = [ends[int(p)].decode(x.row(i).tolist()) for i, p in enumerate(x.prompt_index)]
        return [self.prompts.texts[int(p)] for p in x.prompt_index], answers

    def select(self, s: Selectivity) -> Self:
        """Return the law under a token selectivity.

        Temperatures compose; any other selectivity of an already selected law has no single meaning and is refused.
        """
        refuse_choice(s)
        if s.tilt is not None:
            raise InputError(NO_TILT, got=s.label)
        if not s.is_token:
            raise InputError("a language model takes token selectivities", got=s.label, fix="use temperature or top_p")
        if s.is_neutral:
            return self
        old = self.selectivity
        if old is not None:
            if not (set(old.to_json()) == set(s.to_json()) == {"temperature"}):
                raise InputError(
                    "the law is already selected", got=f"{old.label}, then {s.label}", fix="select the unselected law"
                )
            s = Selectivity(temperature=(old.temperature or 1) * (s.temperature or 1))
        return replace(self, selectivity=s)

    def _answers(self, x: Samples) -> Sequences:
        """Rows that are Sequences and answer this law's prompts."""
        if not isinstance(x, Sequences):
            raise InputError("a causal LM reads Sequences", got=type(x).__name__)
        if x.prompt_ids != self.prompts.ids:
            raise LawMismatchError("the rows answer other prompts than this law's", got=len(x.prompt_ids))
        return x
