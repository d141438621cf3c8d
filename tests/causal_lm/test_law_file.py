"""law.json has one writer and one reader: what is written comes back, and what is no law is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hydrometer.models.causal_lm.data.law_file import LAW_FILE, LawFile
from hydrometer.models.causal_lm.data.prompts import Prompts

LAW = {"version": 1, "prompt_ids": [[3], [4, 5]], "prompt_texts": ["a", "b"], "stop_ids": [1], "max_new_tokens": 4}


@pytest.mark.parametrize("are", ["fixed", "sample"])
@pytest.mark.parametrize("written", [None, ("<a>", "<b>")])
def test_what_is_written_comes_back(tmp_path: Path, are: Any, written: tuple[str, ...] | None) -> None:
    law = LawFile(Prompts(((3,), (4, 5)), ("a", "b"), are, written), (1,), 4)
    law.write(tmp_path)
    stored = json.loads((tmp_path / LAW_FILE).read_text())
    assert ("prompts_are" in stored, "prompts_written" in stored) == (are == "sample", written is not None)
    assert LawFile.from_json(stored) == law


def test_laws_without_newer_keys_are_of_fixed_prompts() -> None:
    assert LawFile.from_json(LAW).prompts == Prompts(((3,), (4, 5)), ("a", "b"), "fixed", None)


@pytest.mark.parametrize(
    "wrong", [[], {}, LAW | {"prompts_are": "x"}, LAW | {"prompt_ids": [[], []]}, LAW | {"stop_ids": 1}]
)
def test_what_is_no_law_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        LawFile.from_json(wrong)
