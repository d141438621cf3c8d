"""Runs vLLM in a process, and maybe an interpreter, of its own: JSON lines in, JSON lines out.

A program, never imported by the package: it needs vLLM and nothing of ours, so vLLM may live in another environment.
The folder holds nothing else, for it becomes the first entry of the import path.

    {"open": {fields of vllm.LLM}}                                         -> {"vllm": version, "torch": version}
    {"prompts": [[id]], "seeds": [int], "sampling": {fields of SamplingParams}} -> {"rows": [[[id], [log p]]]}

Anything that goes wrong -> {"error": text}.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any


def _serve(lines: Any, answers: Any) -> None:
    model: Any = None
    for line in lines:
        try:
            asked = json.loads(line)
            vllm: Any = import_module("vllm")
            if "open" in asked:
                model = vllm.LLM(**asked["open"])
                found: Any = {"vllm": str(vllm.__version__), "torch": str(import_module("torch").__version__)}
            else:
                found = {"rows": _rows(vllm, model, asked)}
        except Exception as e:  # told to the other side, which makes it one line
            found = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _rows(vllm: Any, model: Any, asked: dict[str, Any]) -> list[Any]:
    fields = asked["sampling"]
    params = [vllm.SamplingParams(seed=seed, **fields) for seed in asked["seeds"]]
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    rows: list[Any] = []
    for prompt, out in zip(asked["prompts"], model.generate(prompts, params, use_tqdm=False), strict=True):
        if list(out.prompt_token_ids) != prompt or len(out.outputs) != 1:
            raise ValueError("vLLM answers another prompt than the one it was given")
        ids = [int(t) for t in out.outputs[0].token_ids]
        steps = zip(ids, out.outputs[0].logprobs, strict=True)
        rows.append([ids, [float(step[t].logprob) for t, step in steps]])
    return rows


if __name__ == "__main__":
    # vLLM logs to the standard output, which carries the answers: what it prints goes to the error output instead.
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w", encoding="utf-8") as channel:
        _serve(sys.stdin, channel)
