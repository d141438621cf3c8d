"""`CausalLM`: an opened network and its tokenizer, and the laws of what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.data.prompts import Prompts, read_prompts
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM, stop_set
from hydrometer.models.causal_lm.spec import PromptsFile

__all__ = ["CausalLM"]


@final
class CausalLM(OpenedLM):
    """A causal language model: network and tokenizer; see `opened.OpenedLM`.

    Examples
    --------
    >>> lm = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="bfloat16")
    >>> lm.law("Once upon a time", max_new_tokens=4, block_rows=4).sample(4, seed=0).log_prob.shape
    (4,)
    """

    def law(
        self,
        prompts: str | Sequence[str] | PromptsFile | Prompts | None = None,
        *,
        max_new_tokens: int = 64,
        selectivity: Selectivity | None = None,
        stop: Sequence[int | str] | None = None,
        block_rows: int = 128,
    ) -> CausalLaw:
        """Return the law of this model's answers.

        Parameters
        ----------
        prompts : None for the begin-of-sequence token, a text, several, or a JSONL file; row i answers prompt i mod P.
        max_new_tokens : L, tokens after which a sequence is cut.
        selectivity : token selectivity, or None.
        stop : E, ids or token strings; None takes the model's own.
        block_rows : rows drawn together.
        """
        if not isinstance(prompts, Prompts):
            prompts = read_prompts(prompts, self.tokenizer)
        stop_ids = self.stop_ids if stop is None else stop_set(stop, self.tokenizer)
        law = CausalLaw(self, prompts, stop_ids, max_new_tokens, None, block_rows)
        return law if selectivity is None else law.select(selectivity)
