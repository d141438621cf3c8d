"""Adopted models are candidates of advice: ranked as the run's own, named, and never told cheaper."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from elsewhere_world import World
from hydrometer.cli.commands import main
from hydrometer.report import advice_notes, advice_sentences

BEST = "lm.student.direct.adopted-copy"
RECALL = hm.Need(weight=0.01, margin=0.001)
"""Almost recall alone, which nothing has more of than the truth itself."""


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seeds, each with the truth's own weights adopted as a direct model."""
    home = tmp_path_factory.mktemp("advised")
    truth = {"source": str(world.source), "max_new_tokens": 6}
    hm.run(write_spec(lm_spec(world.source, seeds=4, truth=truth), home), out=home / "run")
    for seed in range(4):
        hm.adopt(home / "run", model=world.source, name="copy", training="direct", seed=seed)
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def by_id(advice: hm.Advice) -> dict[str, Any]:
    return {c["id"]: c for c in advice.data["candidates"]}


def test_an_adopted_model_that_dominates_is_recommended(run: Path) -> None:
    advice = hm.advise(run, RECALL)
    assert (advice.status, advice.take) == ("decided", BEST)
    found = by_id(advice)[BEST]
    assert (found["adopted"], found["training"], found["cost"]) == ("copy", "direct", {})
    assert advice.data["baseline"] == "lm.student.distilled-temperature1.0"
    results = hm.load_results(run)
    contrast = next(
        c for c in results["contrasts"]
        if (c["a"], c["b"], c["metric"]) == (BEST, "lm.student.direct", "recall_per_token")
    )  # fmt: skip
    direct = by_id(advice)["lm.student.direct"]["recall_loss"]["value"]
    assert direct - found["recall_loss"]["value"] == pytest.approx(contrast["value"])
    words = advice_sentences(advice.data)
    assert words[0].startswith("Take the adopted direct model copy as it is: of ")
    assert "its cost is not known" in words[1]
    assert advice.data["expected"]["on"] == "fresh rows"


def test_its_name_is_in_the_table_and_what_is_not_known_of_it_in_a_note(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hydrometer", "advise", str(run), "--weight", "0.01"])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out
    assert "copy direct" in out
    assert "Trained elsewhere and adopted: copy." in " ".join(out.split())


def test_an_adopted_model_of_fewer_seeds_is_compared_on_those(world: World, run: Path) -> None:
    hm.adopt(run, model=world.checkpoints["one-0"], name="trl", selectivity="temperature=0.6", seed=2)
    advice = hm.advise(run, RECALL, fresh=False)
    name = "lm.student.distilled-temperature0.6.adopted-trl"
    assert (advice.data["seeds"], advice.reason) == (1, "one_seed")
    assert advice.data["lacking"] == {name: [0, 1, 3]}
    (note,) = (n for n in advice_notes(advice.data) if "have in common" in n)
    assert "the adopted model trl distilled at temperature 0.6 lacks seeds 0, 1, 3" in note


def test_an_adopted_model_is_no_baseline_and_keeps_no_other_from_being_judged(world: World, run: Path) -> None:
    """One at the neutral setting whose only seed the run's own figures lack is left out, with the reason."""
    hm.adopt(run, model=world.checkpoints["one-0"], name="new", selectivity="temperature=1", seed=1)
    results = json.loads((run / "results.json").read_text())
    for cell in results["cells"]:
        if cell["id"] == "lm.student.distilled-temperature0.6.seed1":
            cell.update(status="failed", reason="it diverged", metrics={})
    (run / "results.json").write_text(json.dumps(results))
    advice = hm.advise(run, RECALL, fresh=False)
    assert advice.data["baseline"] == "lm.student.distilled-temperature1.0"
    assert advice.data["seeds"] == 3
    reasons = {x["adopted"]: x["reason"] for x in advice.data["excluded"] if "adopted" in x}
    assert reasons == {"new": "it has no seed in common with the other candidates"}
