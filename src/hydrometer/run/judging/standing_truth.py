"""A truth that students are judged against again and again, in one process: what is its own is made once, and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydrometer.core.arguments import of_type
from hydrometer.core.errors import InputError, StageError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.models.base import Law
from hydrometer.models.causal_lm.data.parts import Part
from hydrometer.models.causal_lm.given import GIVEN
from hydrometer.models.causal_lm.text_rows import score_held_out
from hydrometer.models.rows.sequences import Sequences
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.join import PART
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.judging.judge_graph import plan_judgement
from hydrometer.run.judging.judge_settings import JudgeSettings
from hydrometer.run.judging.question import Question, pose
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.judge import figures, scores_of
from hydrometer.stages.judge_given import text_figures
from hydrometer.stages.score import columns_of, load_columns
from hydrometer.store.records import RunFolder
from hydrometer.store.remote import open_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.model import CausalLM

__all__ = ["StandingTruth", "stand"]


@dataclass(frozen=True, slots=True, eq=False)
class StandingTruth:
    """A truth with its rows, or held-out texts with a reference, as `judge_models` takes them.

    Attributes
    ----------
    question : what a student is asked.
    law : of the truth, or of the reference.
    rows, log_prob : the truth's rows and their log-probability under it, (N,) nats; None where texts are the truth.
    """

    question: Question
    law: Law
    rows: Sequences | None
    log_prob: NDArray[np.float64] | None

    def asked(self, lm: CausalLM) -> CausalLaw:
        """Return the law of a student's answers. Raises LawMismatchError where they are not comparable."""
        from hydrometer.models.causal_lm.inference.law import CausalLaw

        chain, first = self.question.chain, self.question.chain.models[0]
        law = CausalLaw(lm, first.prompts, first.stop_ids, first.max_new_tokens, None, chain.block_rows)
        law.compatible(self.law)
        return law

    def judge(self, student: CausalLaw, stream: Stream) -> dict[str, Estimate]:
        """Draw rows of a student from a stream, and return its figures: those of `judge_models`.

        Raises
        ------
        StageError : the student has diverged.
        """
        chain, are = self.question.chain, self.question.prompts_are
        own = replace(student.sample(chain.rows, seed=stream), prompts_are=are)
        if self.rows is not None:
            scores = scores_of(self.law, student, self.rows, own, truth_on_truth=self.log_prob)
            return figures(scores, self.law, student)
        texts = range(min(chain.rows, len(of_type(Part, chain.held_out).answers)))
        on_text = score_held_out(student, of_type(Part, chain.held_out), texts)
        strata = GIVEN.held_out_strata(chain)
        strata = None if strata is None else strata[: len(texts)]
        clusters = Clusters(strata) if strata is not None and are == "sample" else strata
        return text_figures(on_text, clusters, own, columns_of(student, self.law, own))


def stand(settings: JudgeSettings, rows: int, place: Path) -> StandingTruth:
    """Open a truth; its rows and their scores are made where `place` does not keep them.

    Parameters
    ----------
    settings : without students; held-out texts need a reference.
    rows : drawn from the truth, and from every student; of held-out texts the first so many.
    place : folder of its own.

    Raises
    ------
    InputError : anything wrong with what was given. StageError : the truth could not be drawn from.
    """
    if settings.truth_text is not None and settings.reference is None:
        raise InputError("texts as the truth need a reference", got=settings.truth_text, fix="name a reference model")
    folder = RunFolder(place)
    question = pose(settings, folder)
    chain = question.chain.model_copy(update={"rows": rows, "block_rows": min(rows, question.chain.block_rows)})
    question = replace(question, chain=chain)
    first = chain.models[0].role
    if chain.held_out is not None:
        return StandingTruth(question, GIVEN.open_given(chain, first, chain.dtype), None, None)
    plan = plan_judgement(question)
    node = plan.judge(plan.cells[0].judge)
    folder.create()
    with folder.hold():
        for name, rendered in question.rendered.items():
            folder.put(PART, name, rendered)
        store = open_store(folder.artifacts)
        outcome = execute(plan, store, SilentMonitor())
        if outcome.failed:
            raise StageError("the truth's rows could not be made", got=next(iter(outcome.failed.values())))
        drawn = of_type(Sequences, ArtifactLoader(store).texts(node.context, node.truth_rows))
        scores = load_columns([store.path("score", key) for key in node.truth_scores])
    law = GIVEN.open_given(chain, first, chain.dtype)  # after the stages, which let go of theirs
    return StandingTruth(question, law, replace(drawn, prompts_are=question.prompts_are), scores.own)
