"""A law's own rows in bfloat16: a token that rounding alone takes out of the kept set is scored as if kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, write_spec  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import PairedScores  # noqa: E402
from hydrometer.models.causal_lm.inference import scorer  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.scorer import score_beside, score_steps  # noqa: E402
from hydrometer.models.causal_lm.networks import next_token  # noqa: E402
from hydrometer.models.causal_lm.networks.selected_logits import as_if_kept  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.stages.judge import figures, scores_of  # noqa: E402
from hydrometer.stages.score import columns_of, load_columns  # noqa: E402
from naive import log_law, naive_logits, slug  # noqa: E402
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

EDGES = [
    Selectivity(top_k=8), Selectivity(top_p=0.8), Selectivity(min_p=0.1), Selectivity(temperature=0.5, top_k=8),
    Selectivity(temperature=1.3, top_k=20, top_p=0.9),
]  # fmt: skip
PROMPTS = ["w3 w4 w5", "w7 w8"]


def half(model: torch.nn.Module) -> CausalLM:
    """A network in bfloat16 on the general path, which Llama networks take on other devices than the processor."""
    lm = CausalLM(model.to(torch.bfloat16), make_tokenizer(64))
    lm.is_llama = False
    return lm


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return half(make_gpt2(tied=True) if request.param == "gpt2" else make_llama(initializer_range=0.1))


@pytest.fixture(scope="module")
def gpt2() -> CausalLM:
    return half(make_gpt2(tied=True))


def drawn(lm: CausalLM, s: Selectivity | None, seed: int = 1) -> tuple[CausalLaw, Sequences]:
    law = lm.law(PROMPTS, max_new_tokens=24, selectivity=s, stop=[1], block_rows=128)
    return law, law.sample(256, seed=seed)


@pytest.mark.parametrize("s", EDGES, ids=slug)
def test_own_rows_keep_their_probability(lm: CausalLM, s: Selectivity) -> None:
    law, x = drawn(lm, s)
    plain, found = score_steps(law, x, entropy=True), score_steps(law, x, entropy=True, drawn=True)
    lost = plain.selected == -np.inf
    assert lost.any()  # otherwise this says nothing
    assert found.as_if_kept is not None
    assert (found.as_if_kept == lost).all()
    assert (found.near_edge == (plain.near_edge | lost)).all()
    for name in ("selected", "unselected", "entropy"):
        assert (getattr(found, name) == getattr(plain, name))[~lost].all()
    beside = law.score_beside(x, law)
    assert (beside.own == found.selected.sum(-1)).all()
    assert np.isfinite(beside.own).all()
    assert beside.near_edge is not None
    assert beside.as_if_kept is not None
    assert (beside.near_edge == found.near_edge.sum(-1)).all()
    assert (beside.as_if_kept == lost.sum(-1)).all()
    control = beside.controls[:, 0]
    assert abs(control.mean()) < 4 * control.std() / len(control) ** 0.5


@pytest.mark.parametrize("s", EDGES, ids=slug)
def test_the_width_holds_what_the_two_paths_differ_by(lm: CausalLM, s: Selectivity) -> None:
    law, x = drawn(lm, s)
    assert x.token_log_prob_unselected is not None
    size = max(np.abs(naive_logits(law, x, i)).max() for i in range(8))
    off = np.abs(x.token_log_prob_unselected - score_steps(law, x).unselected)[x.within]
    assert 2.0**-9 * size < off.max() < next_token.BF16_ERROR * size


def test_a_token_far_outside_has_no_probability(gpt2: CausalLM) -> None:
    law, x = drawn(gpt2, Selectivity(top_k=8))
    row = int(np.flatnonzero(x.lengths >= 5)[0])
    logits = naive_logits(law, x, row)[2].copy()
    logits[1] = np.inf  # not the stop token
    ids = x.ids.copy()
    ids[row, 2] = int(np.argmin(logits))
    found = score_steps(law, replace(x, ids=ids), drawn=True)
    assert found.selected[row, 2] == -np.inf
    assert found.as_if_kept is not None
    assert not found.as_if_kept[row, 2]
    assert law.score_beside(replace(x, ids=ids), law).own[row] == -np.inf


def test_rows_of_another_law_are_lost_as_before(gpt2: CausalLM) -> None:
    """Recall's support is the law's own: no width is given to what the truth drew."""
    truth, x = drawn(gpt2, None)
    law, _ = drawn(gpt2, Selectivity(min_p=0.02))
    alone = law.log_prob(x)
    found = truth.score_beside(x, law)
    within = score_steps(law, x, drawn=True).as_if_kept
    assert within is not None
    assert np.isneginf(alone[within.any(-1)]).all()
    assert within.any()  # a token that an own row would be forgiven
    assert (found.other == alone).all()
    assert found.near_edge is None


def test_float32_is_as_it_was() -> None:
    lm = CausalLM(make_gpt2(tied=True), make_tokenizer(64))
    for s in EDGES:
        law, x = drawn(lm, s)
        assert score_steps(law, x, drawn=True).as_if_kept is None
        assert (law.score_beside(x, law).own == law.log_prob(x)).all()
        assert law.score_beside(x, law).near_edge is None
    law, x = drawn(lm, Selectivity(top_p=0.8))
    whole = naive_logits(law, x, 0)[0]
    p = np.exp(whole - whole.max()) / np.exp(whole - whole.max()).sum()
    order = np.argsort(-p)
    at = next(i for i, token in enumerate(order) if i > 2 and token != 1)
    just_short = Selectivity(top_p=float(p[order[:at]].sum() - 1e-4))
    ids = x.ids.copy()
    ids[0, 0] = order[at]
    assert law.lm.law(PROMPTS, max_new_tokens=24, selectivity=just_short, stop=[1]).score_beside(
        replace(x, ids=ids), law
    ).own[0] == -np.inf  # fmt: skip


def test_a_token_is_scored_with_itself_among_the_kept(gpt2: CausalLM) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -0.01, -3.0]])
    s, ids = Selectivity(top_k=3), np.array([3])
    assert next_token.score(logits, 5, s, ids).selected[0] == -np.inf
    log_p, inside = next_token.score_dropped(logits, 5, s, ids)
    assert inside.tolist() == [True]
    assert log_p[0] == pytest.approx(log_law(logits[:, :4].numpy(), None)[0, 3], abs=1e-6)
    assert next_token.score_dropped(logits, 5, s, np.array([4]))[1].tolist() == [False]


def test_the_width_grows_with_the_logits() -> None:
    """bfloat16 has eight bits: at 64 its last place is a half, at 1 it is 1/128."""
    near = np.array([0.0, -0.5, -1.5, -9.0])
    for shift, expected in ((0.0, False), (64.0, True), (-64.0, True)):
        logits = torch.tensor(near + shift, dtype=torch.float32)[None]
        assert next_token.score_dropped(logits, 4, Selectivity(top_k=2), np.array([2]))[1].tolist() == [expected]


@pytest.mark.parametrize(("gap", "inside"), [(0.01, True), (0.1, False)])
def test_ties_that_rounding_makes_widen_the_nucleus(gap: float, inside: bool) -> None:
    """Two kept hold 0.73 and 0.27: 0.7 is the first alone, but not where eight more may tie with the second."""
    logits = torch.tensor([[0.0, -1.0, *[-1.0 - gap] * 8]])
    s = Selectivity(top_k=2, top_p=0.7)
    assert next_token.score(logits, 10, s, np.array([1])).selected[0] == -np.inf
    found = as_if_kept(logits, s, torch.tensor([[1]]), torch.tensor(0.01))
    assert found[1].tolist() == [inside]


def test_figures_of_two_laws_are_finite_and_say_how_many(gpt2: CausalLM) -> None:
    truth, x = drawn(gpt2, None)
    law, y = drawn(gpt2, Selectivity(top_k=8))
    assert y.near_edge is not None
    assert np.isneginf(law.log_prob(y)).any()
    found = figures(scores_of(truth, law, x, y), truth, law)
    for name in ("entropy", "kl_student_truth", "recorded_minus_scored"):
        assert found[name].value is not None
        assert found[name].n_neg_inf == 0
    assert found["recall"].value is None
    near = law.score_beside(y, law).near_edge
    assert near is not None
    assert near.sum() != y.near_edge.sum()
    assert found["near_edge_share"].value == pytest.approx(near.sum() / y.lengths.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("edges") / "model"
    CausalLM(make_gpt2(tied=True), make_tokenizer(64)).save(made)
    return made


@pytest.mark.campaign
def test_a_run_in_bfloat16_has_entropies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def every_step_near(law: CausalLaw, x: Sequences, other: CausalLaw, *, again: bool = False) -> PairedScores:
        found = score_beside(law, x, other, again=again)
        return found if found.near_edge is None else replace(found, near_edge=x.lengths)

    monkeypatch.setattr(scorer, "score_beside", every_step_near)  # no draw counts so many
    cut = {"top_k": 8}
    spec = lm_spec(
        folder, judge_dtype="bfloat16", selectivity=[{"temperature": 1.0}],
        decoding=[cut, {**cut, "best_of": 2, "rank_by": "length"}],
        data={"train": 16, "validate": 16, "distill": 16, "evaluate": 192},
        truth={"source": str(folder), "max_new_tokens": 24, "prompts": None},
    )  # fmt: skip
    made = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not made.failed_cells
    cells = {c["group"]: c["metrics"] for c in made.results["cells"] if "decoded-topk8" in c["group"]}
    plain = {g: m for g, m in cells.items() if "bestof" not in g}
    assert plain
    for m in plain.values():
        for name in ("entropy", "kl_student_truth", "recorded_minus_scored"):
            assert m[name]["value"] is not None
    chosen = [m for g, m in cells.items() if "bestof" in g]
    assert chosen
    assert all(m["entropy_bound"]["value"] is not None for m in chosen)
    assert {m["near_edge_share"]["value"] for m in cells.values()} == {1.0}
    kept = 0
    for path in (tmp_path / "out" / "artifacts").glob("score-*"):
        info, columns = json.loads((path / "meta.json").read_text())["info"], load_columns([path])
        if columns.as_if_kept is None or columns.near_edge is None:
            assert "edge_tokens" not in info
            continue
        assert info["edge_tokens"] == columns.as_if_kept.sum()
        assert (columns.near_edge >= columns.as_if_kept).all()
        kept += info["edge_tokens"]
    assert kept > 0


def test_models_judged_in_bfloat16_have_entropies(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "w3 w4 w5"}\n{"text": "w7 w8"}\n')
    found = judge_models(
        [folder], truth=folder, prompts=tmp_path / "p.jsonl", answers_per_prompt=128, max_new_tokens=24,
        dtype="bfloat16", decodings=[Selectivity(min_p=0.1)], out=tmp_path / "out",
    )  # fmt: skip
    metrics = next(c["metrics"] for c in found.results["cells"] if "minp0.1" in c["id"])
    for name in ("entropy", "kl_student_truth", "recorded_minus_scored"):
        assert metrics[name]["value"] is not None
        assert metrics[name]["n_neg_inf"] == 0
    assert metrics["near_edge_share"]["value"] > 0
    assert metrics["recall"]["value"] is None


def test_own_rows_alone_are_given_room(gpt2: CausalLM) -> None:
    law, x = drawn(gpt2, Selectivity(top_k=8))
    lost = np.isneginf(law.log_prob(x))
    within = score_steps(law, x, drawn=True).as_if_kept
    assert within is not None
    found = columns_of(law, law, x)
    assert np.isfinite(found.own).all()
    assert found.near_edge is not None
    assert found.as_if_kept is not None
    assert found.as_if_kept.sum() == within.sum() >= lost.sum() > 0
    assert (cast("Sequences", found.counted(x)).near_edge == found.near_edge).all()
    hotter = gpt2.law(PROMPTS, max_new_tokens=24, stop=[1], block_rows=128)
    foreign = columns_of(hotter, law, x)  # as if another law had drawn them
    assert (np.isneginf(foreign.other) == lost).all()
