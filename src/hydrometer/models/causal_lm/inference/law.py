"""The law of a causal language model's answers.

A sequence stops at its first token in the stop set E, which is part of it and scored, or after L new tokens, with no
term for the cut. `log_prob` is that of this stopped process, given the prompt:

    log p(x | prompt) = sum over t of log p_s(x_t | prompt, x_<t),     p_s the selected next-token law.

Row i answers prompt i mod P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import InputError, LawMismatchError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.models.base import Law, PairedScores, Samples, ScoreKind
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks.network import max_positions
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.scorer import StepScores

__all__ = ["CausalLaw", "learns_from_whole_rows"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CausalLaw(Asked):
    """The law of what a model answers; see `opened.Asked` for its parameters."""

    @property
    def score_kind(self) -> ScoreKind:
        """Log-probabilities of sequences are exact, up to rounding."""
        return "exact"

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream, in whole aligned blocks.

        Rows do not depend on the call: bitwise equal for equal torch, processor class and threads.
        """
        from hydrometer.models.causal_lm.inference.sampler import draw_blocks

        if n < 1 or start < 0:
            raise InputError("sample needs n >= 1 and start >= 0", got=(n, start))
        stream, rows = as_stream(seed), self.block_rows
        first, last = start // rows, -(-(start + n) // rows)
        whole = draw_blocks(self, stream, first, last)
        at = start - first * rows
        return whole.take(slice(at, at + n))

    def sample_block(self, n: int, *, stream: Stream, start: int) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream together, and no others.

        The rows of `sample`: bitwise for an aligned block of `block_rows`, else up to rounding.
        """
        prompt_n = np.arange(start, start + n, dtype=np.int64) % self.n_prompts
        return self.draw(stream.uniforms(start, n, self.max_new_tokens), prompt_n)

    def draw(self, uniforms: NDArray[np.float64], prompt_index: NDArray[np.int64]) -> Sequences:
        """Draw a row from each row of uniforms (N, L) after the prompt of that index, all N together.

        Bits depend on which rows are drawn together, as everywhere.
        """
        from hydrometer.models.causal_lm.inference.sampler import draw_rows

        return draw_rows(self, uniforms, prompt_index)

    def log_prob(self, x: Samples) -> NDArray[np.float64]:
        """Log-probability of each row, (N,) float64, nats.

        Minus infinity for impossible rows: a token outside the selected set or after a stop, or an end that is neither
        a stop nor the cut.

        Raises
        ------
        LawMismatchError : the rows answer other prompts.
        """
        from hydrometer.models.causal_lm.inference.scorer import score

        return score(self, self._answers(x))

    def token_log_prob(self, x: Sequences) -> NDArray[np.float64]:
        """Log-probability of each token under the selected law, (N, T) nats; zero beyond a row. Limits do not count."""
        return self.score_steps(x).selected

    @property
    def room(self) -> int | None:
        """Positions that the network has, None if its configuration does not say."""
        return max_positions(self.lm.model.config)

    def score_beside(self, x: Samples, other: Law, *, again: bool = False) -> PairedScores:
        """Score rows that this law drew under it and under `other`, with both martingales as control variates.

        One pass of each network; see `models.base.Controlled`. With `again` this network's states are kept for the
        next law (256 MiB at most). In bfloat16 a token that this law's selectivity drops by no more than rounding is
        scored as if kept, and counted: the rows are this law's own. `log_prob` gives it minus infinity.

        Raises
        ------
        LawMismatchError : other outcomes. StageError : rows that this law did not draw.
        """
        from hydrometer.models.causal_lm.inference.scorer import score_beside

        if not isinstance(x, Sequences) or not isinstance(other, CausalLaw):
            raise LawMismatchError("a causal LM is scored beside causal LMs", got=type(other).__name__)
        return score_beside(self, x, other, again=again)

    def score_steps(self, x: Sequences, *, entropy: bool = False, against: CausalLaw | None = None) -> StepScores:
        """Log-probabilities, entropy and cross-entropy of the next-token law at every step.

        Parameters
        ----------
        x : rows that answer this law's prompts.
        entropy : also the entropy of the next-token law at every step.
        against : also the cross-entropy of this next-token law p relative to that one's q at every step,
            ``-sum_j p(j | prefix) log q(j | prefix)``.

        Returns
        -------
        StepScores, columns (N, T) in nats; ``-cross_entropy`` is the expected log q of the next token given its prefix.

        Raises
        ------
        LawMismatchError : the rows answer other prompts, or the two laws are of other outcomes.

        Examples
        --------
        >>> from hydrometer import CausalLM
        >>> law = CausalLM.from_pretrained("smollm2-135m-instruct").law("The sea", max_new_tokens=4, block_rows=4)
        >>> x = law.sample(4, seed=0)
        >>> bool(abs(law.score_steps(x).selected.sum(1) - x.log_prob).max() < 1e-3)
        True
        """
        from hydrometer.models.causal_lm.inference.scorer import score_steps

        return score_steps(self, x, entropy=entropy, against=against)

    def embed(self, x: Samples) -> NDArray[np.float32]:
        """Embed rows: mean last hidden state over the answer's tokens, (N, D) float32.

        The state is what the body returns at each of the answer's tokens, the stop token included, after the final
        norm (`last_hidden_state` of transformers). The prompt is read, but its own tokens do not count. Computed in the
        network's dtype; the selectivity plays no part.

        Raises
        ------
        LawMismatchError : the rows answer other prompts, hold unknown ids, or one of them has no token.

        Examples
        --------
        >>> from hydrometer import CausalLM
        >>> law = CausalLM.from_pretrained("smollm2-135m-instruct").law("The sea", max_new_tokens=4, block_rows=4)
        >>> law.embed(law.sample(4, seed=0)).shape
        (4, 576)
        """
        from hydrometer.models.causal_lm.inference.embedder import embed

        return embed(self, self._answers(x))


def learns_from_whole_rows(law: CausalLaw) -> bool:
    """Whether batched whole rows give every position the law of its prefix alone, as fits assume."""
    return law.lm.is_llama or law.lm.running.is_whole(law.longest)
