"""The command `judge`: parses, calls, prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hydrometer.cli.options import Address, Artifacts, Executor, Json, filled
from hydrometer.cli.result_output import say_results

__all__ = ["judge_command"]

_MODEL = "Hub id, folder, GGUF file, PEFT adapter folder, YAML of a served model, or smollm2-135m-instruct."


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What to judge, against what, on how many answers: arguments of `judge_models`."""

    students: Annotated[list[str], typer.Option("--student", metavar="M", help=f"{_MODEL} Repeatable.")]
    truth: Annotated[str | None, typer.Option("--truth", metavar="M", help=_MODEL)] = None
    truth_text: Annotated[
        Path | None,
        typer.Option(
            "--truth-text", metavar="FILE", help="Held-out text in the place of a truth; JSONL, Parquet or CSV."
        ),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="M", help="With --truth-text: what precision_reference is measured under."),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="JSONL, Parquet or CSV: prompt, instruction, question, messages, text."
        ),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Use the chat template. [default: yes for all but text, if there is one]"
        ),
    ] = None
    prompts_are: Annotated[
        Literal["fixed", "sample"] | None,
        typer.Option("--prompts-are", metavar="fixed|sample", help="What intervals are for. [default: sample]"),
    ] = None
    answers_per_prompt: Annotated[
        int | None,
        typer.Option("--answers-per-prompt", "--n", metavar="N", help="Answers to every prompt. [default: 256 in all]"),
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="L", help="Where an answer is cut. [default: 64]")
    ] = None
    decodings: Annotated[
        list[str] | None,
        typer.Option("--decoding", metavar="temperature=T,top_p=P", help="Judge every student so, too. Repeatable."),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--dtype", metavar="float32|bfloat16", help="Arithmetic.")
    ] = "float32"
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda|auto", help="Where models run.")] = "cpu"
    base: Annotated[
        str | None, typer.Option("--base", metavar="M", help="The model under adapters, where they name a path.")
    ] = None
    out: Annotated[str, typer.Option("--out", metavar="DIR|URL", help="Folder for rows, scores, results.")] = (
        "runs/judge"
    )
    cache: Artifacts = None
    executor: Executor = "local"
    address: Address = None
    as_json: Json = False


@filled(JudgeOptions)
def judge_command(o: JudgeOptions) -> None:
    """Judge models trained anywhere against a truth, or against held-out text."""
    from hydrometer.run.execution.progress import ConsoleMonitor

    asked = asdict(o)
    as_json = asked.pop("as_json")
    with ConsoleMonitor() as monitor:
        from hydrometer.core.spec import parse_selectivity
        from hydrometer.report import build_report
        from hydrometer.run.judging.judging import judge_models

        asked["decodings"] = [parse_selectivity(d, "--decoding") for d in o.decodings or []]
        result = judge_models(**asked, monitor=monitor)
        page = build_report([result.folder])
    say_results(result, page, as_json=as_json)
