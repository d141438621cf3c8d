"""Whole runs with settings that choose among candidates: what they report, and what they say instead of a number."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hydrometer as hm
from chains import MIXTURE, write_spec
from hydrometer.core.errors import SpecError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.choosing import rankers
from hydrometer.models.choosing.best_of_n import check_choices
from hydrometer.models.families import families
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import group_table, summary_table
from hydrometer.report.words.verdict import verdict
from hydrometer.run.graph.plan import plan_run

ROOT = Path(__file__).parents[2]
BEST: dict[str, Any] = {"temperature": 0.8, "best_of": 4, "rank_by": "truth_log_prob"}
STOPPED: dict[str, Any] = {"accept": {"by": "stopped", "min": 1}}
NEVER: dict[str, Any] = {"accept": {"by": "length", "min": 100, "tries": 20}}
CHAIN: dict[str, Any] = {
    "family": "markov", "truth": {"order": 2, "vocabulary": 4, "max_new_tokens": 6}, "teacher": {"order": 2},
    "student": {"order": 1}, "data": {"train": 200, "distill": 300, "evaluate": 300},
    "selectivity": [{"temperature": 1}, {"temperature": 0.6}, BEST, STOPPED],
}  # fmt: skip
SCORELESS = {"recall", "recall_on_support", "entropy", "entropy_truth", "kl_student_truth", "kl_truth_student"}


def spec(seeds: int = 2, **changes: Any) -> dict[str, Any]:
    return {"name": "chosen", "seeds": seeds, "chains": {"m": copy.deepcopy(CHAIN) | changes}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("chosen")
    result = hm.run(write_spec(spec(), folder), out=folder / "out")
    assert not result.failed_cells
    return folder / "out", result.results


def test_chosen_laws_have_no_scores_and_their_students_have_all(made: tuple[Path, dict[str, Any]]) -> None:
    _, results = made
    jsonschema.validate(results, json.loads((ROOT / "docs" / "results.schema.json").read_text()))
    groups = {c["group"]: c for c in results["cells"]}
    best = "temperature0.8_bestof4-by-truth_log_prob"
    for group in (f"m.teacher.decoded-{best}", f"m.student.direct.decoded-{best}"):
        cell = groups[group]
        assert not SCORELESS & set(cell["metrics"])
        assert {"precision", "draws_per_row", "entropy_bound", "length"} <= set(cell["metrics"])
        assert "no log-probability" in cell["absent"]
        assert cell["metrics"]["draws_per_row"]["value"] == 4
    rejected = groups["m.teacher.decoded-accept-by-stopped-min-1.0"]["metrics"]
    assert rejected["eos_rate"]["value"] == 1
    assert 0 < rejected["acceptance_rate"]["value"] < 1
    for slug in (best, "accept-by-stopped-min-1.0"):
        student = groups[f"m.student.distilled-{slug}"]
        assert {"recall", "entropy", "kl_student_truth", "kl_truth_student"} <= set(student["metrics"])
        assert "entropy_teacher" not in student["metrics"]
        assert "absent" not in student
    assert "entropy_teacher" in groups["m.student.distilled-temperature0.6"]["metrics"]
    # ranked by the truth, four candidates beat one
    plain = groups["m.teacher.decoded-temperature0.6"]["metrics"]["precision"]
    oracle = groups[f"m.teacher.decoded-{best}"]["metrics"]["precision"]
    assert oracle["value"] > plain["value"]


def test_what_has_no_entropy_comes_last_and_is_not_the_coldest(made: tuple[Path, dict[str, Any]]) -> None:
    chain = made[1]["summary"]["chains"]["m"]
    steps = [(s["selectivity"], s["coldest"]) for s in chain["tradeoff"]]
    assert steps[:2] == [({"temperature": 1.0}, False), ({"temperature": 0.6}, True)]
    assert not any(coldest for _, coldest in steps[2:])
    assert len(steps) == 4
    controls = {json.dumps(c["selectivity"]): c for c in chain["control"]}
    mine = controls[json.dumps({"temperature": 0.8, "best_of": 4, "rank_by": "truth_log_prob"})]
    assert {"precision", "length"} <= set(mine["same_setting"])
    assert not SCORELESS & set(mine["same_setting"])


def test_a_control_by_choice_alone_says_why_nothing_is_matched(tmp_path: Path) -> None:
    result = hm.run(write_spec(spec(1, selectivity=[{"temperature": 1}, BEST]), tmp_path), out=tmp_path / "out")
    (control,) = result.results["summary"]["chains"]["m"]["control"]
    assert control["matched_entropy"] is None
    assert "has no entropy to match" in control["matched_reason"]
    said = verdict(result.results)["m"]
    assert "best of 4 by truth_log_prob" in said[1]  # the only selective setting leads the trade-off


def test_reports_say_so_in_words(made: tuple[Path, dict[str, Any]]) -> None:
    folder, results = made
    run = parse(results)
    table = group_table(run, run.chains["m"])
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    mine = rows["direct, decoded at temperature 0.8, best of 4 by truth_log_prob"]
    assert {mine["recall"], mine["H(q)"], mine["KL(q‖p*)"], mine["KL(p*‖q)"]} == {"no score"}
    assert "±" in mine["precision"]
    assert "no score" not in rows["distilled at accept stopped ≥ 1"].values()
    extra = group_table(run, run.chains["m"], extra=True)
    assert {"draws / row", "accepted", "KL(q‖candidates)", "distinct-3"} <= set(extra.head)
    said = " ".join(verdict(results)["m"])
    assert "cannot be scored" in said
    assert "Distilling at temperature 0.8, best of 4 by truth_log_prob" in said
    assert summary_table(results) is not None
    page = hm.build_report([folder]).read_text()
    assert "no score" in page


def test_two_choices_that_differ_are_two_settings_for_a_reader() -> None:
    from hydrometer.report.values import read_setting
    from hydrometer.report.wording import setting

    fields = [
        {"best_of": 4, "rank_by": "length"}, {"best_of": 4, "rank_by": "-length"}, {"best_of": 5, "rank_by": "length"},
        {"accept": {"by": "length", "min": 4}}, {"accept": {"by": "length", "max": 4}},
        {"accept": {"by": "stopped", "min": 4}}, {"accept": {"by": "length", "min": 4, "max": 4}}, STOPPED, BEST,
    ]  # fmt: skip
    read = [read_setting(f) for f in fields]
    assert all(a != b for i, a in enumerate(read) for b in read[:i])
    assert len({setting(r) for r in read}) == len(fields)
    assert read_setting({"best_of": 1, "rank_by": "length"}) is None


def test_a_row_that_is_never_accepted_fails_its_cells_alone(tmp_path: Path) -> None:
    result = hm.run(write_spec(spec(1, selectivity=[{"temperature": 1}, NEVER]), tmp_path), out=tmp_path / "out")
    bad = {c["group"]: c["reason"] for c in result.results["cells"] if c["status"] == "failed"}
    assert set(bad) == {
        f"m.{who}-accept-by-length-min-100.0"
        for who in (
            "teacher.decoded", "student.distilled", "student.direct.decoded",
            "student.distilled-temperature1.0.decoded",
        )
    }  # fmt: skip
    assert all("none of 20 candidates" in reason for reason in bad.values())


def test_more_tries_go_on_with_the_same_folder(tmp_path: Path) -> None:
    few = {"accept": {"by": "length", "min": 6, "tries": 2}}
    one = hm.run(write_spec(spec(1, selectivity=[{"temperature": 1}, few]), tmp_path), out=tmp_path / "out")
    assert one.failed_cells
    many = {"accept": {"by": "length", "min": 6, "tries": 5000}}
    two = hm.run(write_spec(spec(1, selectivity=[{"temperature": 1}, many]), tmp_path), out=tmp_path / "out")
    assert not two.failed_cells
    assert len(two.results["cells"]) == len(one.results["cells"])
    assert two.outcome.reused["judge"] == one.outcome.computed["judge"]


def test_the_whole_is_the_sum_of_its_seeds(tmp_path: Path, made: tuple[Path, dict[str, Any]]) -> None:
    one = hm.run(write_spec(spec(1), tmp_path), out=tmp_path / "out")
    both = {c["id"]: c["metrics"] for c in made[1]["cells"]}
    assert one.results["cells"]
    assert all(both[c["id"]] == c["metrics"] for c in one.results["cells"])


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (CHAIN | {"selectivity": [{"best_of": 2, "rank_by": "lenght"}]}, "did you mean 'length'"),
        (CHAIN | {"decoding": [{"accept": {"by": "nothing", "min": 0}}]}, "unknown score"),
        (CHAIN | {"selectivity": [{"best_of": 2, "rank_by": "missing_score"}]}, "cannot be imported"),
        (CHAIN | {"selectivity": [{"best_of": 2}]}, "best_of and rank_by go together"),
        (CHAIN | {"selectivity": [NEVER, NEVER | {"accept": NEVER["accept"] | {"tries": 9}}]}, "listed twice"),
        (MIXTURE | {"selectivity": [{"best_of": 2, "rank_by": "log_prob"}]}, "selected by weight_power"),
        (MIXTURE | {"selectivity": [{"weight_power": 2, "best_of": 2, "rank_by": "log_prob"}]}, "by weight_power"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(chain: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        hm.run(write_spec({"name": "x", "chains": {"m": chain}}, tmp_path), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_family_without_texts_is_refused() -> None:
    chain = ChainSpec.model_validate({"family": "mixture", "selectivity": [{"best_of": 2, "rank_by": "log_prob"}]})
    with pytest.raises(SpecError, match="need a family of sequences, not mixture"):
        check_choices(chain, families()["mixture"])


def test_a_changed_score_makes_other_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed score's own file is part of what its rows depend on."""
    chain = CHAIN | {"selectivity": [{"temperature": 1}, {"best_of": 2, "rank_by": "count_b"}]}
    read = hm.load_spec(write_spec({"name": "x", "chains": {"m": chain}}, tmp_path))
    before, again = set(plan_run(read).nodes), set(plan_run(read).nodes)
    assert before == again

    def count_b(prompts: list[str], answers: list[str], ids: list[list[int]]) -> list[float]:
        return [0.0 for _ in answers]

    monkeypatch.setattr(rankers, "_load", lambda name: count_b)
    after = set(plan_run(read).nodes)
    assert before & after
    assert len(before - after) == len(after - before) >= 5
