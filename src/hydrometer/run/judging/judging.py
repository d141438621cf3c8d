"""Judge models that exist, wherever they were trained: the verb `judge` of the command line.

Against a truth that can be drawn from, figures are those of a run's cells. Against held-out text, recall is measured on
the text, and precision against a named reference model, under a name of its own. See docs, Judge a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.rng import Stream
from hydrometer.core.sampling_design import PromptsAre
from hydrometer.core.spec import Selectivity
from hydrometer.models.finite_selectivity import canonical as neutral_is_none
from hydrometer.run.api import RunResult
from hydrometer.run.execution.execute import Monitor, Outcome, SilentMonitor
from hydrometer.run.graph.inputs import check_places
from hydrometer.run.graph.rendered import PART
from hydrometer.run.judging.judge_jobs import Jobs, Work, run_jobs
from hydrometer.run.judging.judge_plan import JudgedCell, Question, build_cells, pose
from hydrometer.run.judging.judge_results import results_of
from hydrometer.store.records import RunFolder, load_results
from hydrometer.store.remote import open_store

__all__ = ["JudgeResult", "JudgeSettings", "judge_models"]

NAME = "judge"
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What is asked; fields as in `judge_models`."""

    students: tuple[str, ...]
    truth: str | None = None
    truth_text: str | None = None
    reference: str | None = None
    prompts: str | None = None
    chat: bool | None = None
    prompts_are: PromptsAre | None = None
    answers_per_prompt: int | None = None
    max_new_tokens: int | None = None
    decodings: tuple[Selectivity, ...] = field(default=())
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    base: str | None = None

    def __post_init__(self) -> None:
        if not self.students:
            raise InputError("no student to judge", fix="give at least one --student")
        if (self.truth is None) == (self.truth_text is None):
            got = "both" if self.truth is not None else "neither"
            raise InputError("the truth is a model or a text", got=got, fix="give one of --truth and --truth-text")
        if self.truth is not None and self.reference is not None:
            fix = "leave --reference out: the truth itself can be asked"
            raise InputError("a reference goes with --truth-text only", got=self.reference, fix=fix)
        if self.truth_text is not None and self.prompts is not None:
            fix = "leave --prompts out: the text brings its own"
            raise InputError("prompts come from --truth-text", got=self.prompts, fix=fix)
        for name in ("answers_per_prompt", "max_new_tokens"):
            value: int | None = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise InputError(f"{_flag(name)} must lie between 1 and {MOST}", got=value)
            if value is not None and self.truth_text is not None and self.reference is None:
                fix = f"give --reference, or leave {_flag(name)} out"
                raise InputError("nothing is drawn where there is text and no reference", got=value, fix=fix)
        if self.seed < 0:
            raise InputError("the seed must not be negative", got=self.seed)
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError("no such dtype", got=self.dtype, fix="use float32 or bfloat16")
        if self.prompts_are not in (None, "fixed", "sample"):
            raise InputError("prompts are fixed or a sample", got=self.prompts_are, fix="use fixed or sample")
        for s in self.decodings:
            if not s.is_token:
                raise InputError("a language model is decoded by temperature, top_k, top_p, min_p", got=s.label)
        if len({s.slug for s in self.decodings}) < len(self.decodings):
            raise InputError("a decoding is given twice", got=[s.label for s in self.decodings], fix="keep one of them")

    @property
    def settings(self) -> list[Selectivity | None]:
        """How every student is decoded: as it is, and at each setting that changes something."""
        return [None, *(s for s in self.decodings if neutral_is_none(s) is not None)]


@dataclass(frozen=True, slots=True)
class JudgeResult(RunResult):
    """What `judge_models` returns; what is counted in `outcome` are jobs."""


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
    out: str | Path = Path("runs") / NAME,
    monitor: Monitor | None = None,
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
    monitor : watches progress.

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
    settings = JudgeSettings(
        tuple(str(s) for s in students), _text(truth), _text(truth_text), _text(reference), _text(prompts), chat,
        prompts_are, answers_per_prompt, max_new_tokens, tuple(decodings), seed, dtype, device, base,
    )  # fmt: skip
    folder = RunFolder(out)
    check_places(folder.place)
    _check_folder(folder)
    question = pose(settings, folder)
    jobs = Jobs()
    cells = build_cells(question, jobs, Stream(seed))
    folder.create()
    with folder.hold():
        store = open_store(folder.artifacts)
        store.sweep()
        folder.sweep()
        spec: dict[str, Any] = {"name": NAME, NAME: _spec(settings, question)}
        for name, rendered in question.rendered.items():
            folder.put(PART, name, rendered)
        folder.accept(spec)
        folder.push()  # before any artifact: what has artifacts is a run
        work = Work(store, dtype, device)
        outcome = run_jobs(jobs, work, monitor or SilentMonitor())
        folder.write_results(_written(folder, question, cells, work, outcome, spec))
    return JudgeResult(folder.place, load_results(folder.root), outcome)


def _written(
    folder: RunFolder,
    question: Question,
    cells: list[JudgedCell],
    work: Work,
    outcome: Outcome,
    spec: dict[str, object],
) -> dict[str, object]:
    results, exhibits = results_of(NAME, question, cells, work, outcome, spec)
    for record in results["cells"]:
        folder.put("records", record["id"], record)
    for cell_id, shown in exhibits.items():
        folder.put("exhibits", cell_id, shown)
    return results


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
        "models": {m.label: dict(m.model.resolved.identity) for m in question.laws},
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)
