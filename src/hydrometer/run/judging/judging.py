"""Judge models that exist, wherever they were trained: the verb `judge` of the command line.

Against a truth that can be drawn from, figures are those of a run's cells. Against held-out text, recall is measured on
the text, and precision against a named reference model, under a name of its own. See docs, Judge a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.run.api import RunResult
from hydrometer.run.execution.executors import ExecutorName, executor_of
from hydrometer.run.execution.recorder import Recorder
from hydrometer.run.graph.inputs import check_places
from hydrometer.run.graph.join import PART
from hydrometer.run.graph.outcome import Monitor, Outcome, SilentMonitor
from hydrometer.run.judging.judge_graph import NAME, plan_judgement
from hydrometer.run.judging.judge_results import write_results
from hydrometer.run.judging.judge_settings import JudgeSettings
from hydrometer.run.judging.question import Question, pose
from hydrometer.run.results.sofar import SoFar
from hydrometer.store.records import RunFolder, load_results
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import place_of

__all__ = ["JudgeResult", "judge_models"]


@dataclass(frozen=True, slots=True, repr=False)
class JudgeResult(RunResult):
    """What `judge_models` returns."""


def judge_models(
    students: Sequence[str | Path],
    *,
    truth: str | Path | None = None,
    truth_text: str | Path | None = None,
    reference: str | Path | None = None,
    prompts: str | Path | None = None,
    chat: bool | None = None,
    prompts_are: PromptsAre | None = None,
    answers_per_prompt: int | None = None,
    max_new_tokens: int | None = None,
    decodings: Sequence[Selectivity] = (),
    seed: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    base: str | None = None,
    out: str | Path = Path("runs") / "judge",
    cache: str | Path | None = None,
    monitor: Monitor | None = None,
    executor: ExecutorName = "local",
    address: str | None = None,
) -> JudgeResult:
    """Judge models that exist against a truth, or against held-out text.

    A model is an alias, a folder, a GGUF file, a hub id, or a PEFT adapter's folder (extra ``peft``). An interrupted
    call goes on where it stopped; a call with more students or decodings makes what is new.

    Parameters
    ----------
    students : models to judge.
    truth : a model that is drawn from and scores; or
    truth_text : a file of held-out text, JSON lines or Parquet: ``text``; ``prompt`` and ``completion`` or ``answer``;
        or ``messages`` whose last turn is the assistant's.
    reference : with `truth_text`, the model that precision is measured against, as ``precision_reference``.
    prompts : a file, JSON lines or Parquet, of ``prompt``, ``messages`` or ``text``. None takes those that the
        students bring along where they were fitted by this package, else the begin-of-sequence token.
    chat : put prompts into the chat template. None: messages yes, text no, prompts where the first model has one.
    prompts_are : "sample" (intervals are for the population that the prompts are a sample of, clustered by prompt) or
        "fixed" (for these prompts). None is a sample where there are at least two prompts.
    answers_per_prompt : answers drawn from every law to every prompt. None: as many as make 256 rows, at least one.
    max_new_tokens : L, where an answer is cut. None: 64, or what the students bring along.
    decodings : settings at which every student is judged besides as it is.
    seed : of the draws.
    dtype, device : arithmetic of drawing and scoring; float32 is the model.
    base : the model under adapters that do not name an alias or a hub id.
    out : folder or URL for artifacts and results.
    cache : folder or URL for artifacts, where several judgements share them; inside `out` by default.
    monitor : watches progress.
    executor, address : as in `run`: "ray" makes many stages at once on a Ray cluster.

    Returns
    -------
    JudgeResult : results.json's content, its cells with `Estimate` fields in nats, nats/token or nats/byte.

    Raises
    ------
    InputError : anything wrong with what was given.

    Examples
    --------
    >>> import tempfile, json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "prompts.jsonl"
    ...     _ = file.write_text('{"text": "The sea"}' + chr(10) + '{"text": "A loaf of"}')
    ...     m, out = "smollm2-135m-instruct", folder + "/out"
    ...     found = judge_models([m], truth=m, prompts=file, answers_per_prompt=2, max_new_tokens=2, out=out)
    >>> cell = found.results["cells"][1]["metrics"]  # a model judged against itself
    >>> cell["kl_student_truth"]["value"], cell["recall"]["df"]
    (0.0, 1.0)
    """
    if not students:
        raise InputError("no student to judge", fix="give at least one --student")
    settings = JudgeSettings(
        tuple(str(s) for s in students),
        _text(truth),
        _text(truth_text),
        _text(reference),
        _text(prompts),
        chat,
        prompts_are,
        answers_per_prompt,
        max_new_tokens,
        tuple(decodings),
        seed,
        dtype,
        device,
        base,
    )
    make = executor_of(executor, address)
    folder = RunFolder(out)
    check_places(folder.place, cache)
    _check_folder(folder)
    question = pose(settings, folder)
    plan = plan_judgement(question)
    artifacts = place_of(cache) if cache is not None else folder.artifacts
    folder.create()
    with folder.hold():
        store = open_store(artifacts)
        store.sweep(shared=cache is not None)
        folder.sweep()
        for name, rendered in question.rendered.items():
            folder.put(PART, name, rendered)
        spec: dict[str, Any] = {"name": NAME, NAME: _spec(settings, question)}
        folder.accept(spec)
        folder.push()  # before any artifact: what has artifacts is a run

        def write(outcome: Outcome) -> None:
            if any(c.judge not in outcome.left for c in plan.cells):
                write_results(folder, spec, question, plan, store, outcome)

        with Recorder(folder, monitor or SilentMonitor()) as watch:
            outcome = make(plan, store, watch, SoFar(plan, store, watch, write))
            write(outcome)
    return JudgeResult(folder.place, load_results(folder.root), outcome)


def _check_folder(folder: RunFolder) -> None:
    if any(NAME not in known for known in folder.accepted()):
        what = "the folder holds an experiment, not a judgement"
        raise FolderError(what, got=str(folder.place), fix="choose another --out")


def _spec(settings: JudgeSettings, question: Question) -> dict[str, object]:
    """What was asked, with what each source turned out to be."""
    asked = {k: v for k, v in asdict(settings).items() if v is not None and k != "decodings"}
    decodings = [s.to_json() for s in settings.decodings]
    return {
        **asked,
        "decodings": decodings,
        "models": {m.label: dict(m.identity) for m in question.chain.models},
    }


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)
