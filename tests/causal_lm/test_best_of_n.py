"""Best of n and rejection with language models: against enumeration, and against candidates drawn one by one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, write_spec  # noqa: E402
from hydrometer.core.errors import InputError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences  # noqa: E402
from naive import naive_log_prob  # noqa: E402


def setting(**fields: Any) -> hm.Selectivity:
    return hm.Selectivity.model_validate(fields)


def rows(x: Sequences) -> list[tuple[int, ...]]:
    return [(int(x.prompt_index[i]), *x.row(i).tolist()) for i in range(len(x))]


def strings(law: CausalLaw) -> Sequences:
    stop, going = law.stop_ids, [i for i in range(law.lm.vocab_size) if i not in law.stop_ids]
    out = [(*h, s) for n in range(law.max_new_tokens) for h in itertools.product(going, repeat=n) for s in stop]
    out += list(itertools.product(going, repeat=law.max_new_tokens))
    ids = np.zeros((len(out), law.max_new_tokens), np.int64)
    for i, s in enumerate(out):
        ids[i, : len(s)] = s
    zeros = np.zeros(len(out), np.int64)
    ended = np.array([s[-1] in stop for s in out])
    return Sequences(law.prompts.ids, zeros, ids, np.array([len(s) for s in out]), ended, zeros.astype(float))


def test_draws_follow_the_enumerated_law(small: CausalLM) -> None:
    law = small.law(None, max_new_tokens=2, block_rows=4096)
    every, best = strings(law), 3
    p = np.exp(law.log_prob(every))
    # Scores as the sampler rounds them: strings that lie closer than that tie here, which moves no mass that shows.
    level = np.array([p[p <= q].sum() for q in p])
    b = p * (level**best - (level - np.array([p[p == q].sum() for q in p])) ** best)
    b /= np.array([p[p == q].sum() for q in p])
    n = 2 * 4096
    x = hm.choose(law, setting(best_of=best, rank_by="log_prob")).sample(n, seed=1)
    place = {tuple(every.row(i).tolist()): i for i in range(len(every))}
    found = np.bincount([place[tuple(x.row(i).tolist())] for i in range(n)], minlength=len(every))
    rare = b * n < 5
    pooled = [np.append(c[~rare], c[rare].sum()) for c in (found, b * n)]
    assert stats.chisquare(pooled[0], pooled[1] * n / pooled[1].sum()).pvalue > 1e-4
    plain = np.append(p[~rare], p[rare].sum())
    assert stats.chisquare(pooled[0], plain * n / plain.sum()).pvalue < 1e-9


def test_each_row_is_the_best_of_its_own_candidates(llama: CausalLM) -> None:
    """Candidate k of row i is entry i of the stream's child candidate/k, after prompt i mod P."""
    law = llama.law(["w5", "w9 w10 w11 w12", "w7 w8"], max_new_tokens=6, block_rows=16)
    n, stream = 40, Stream(3, ("x",))
    x = hm.choose(law, setting(temperature=0.8, best_of=3, rank_by="log_prob_per_token")).sample(n, seed=stream)
    warm = law.select(setting(temperature=0.8))
    drawn = [
        Sequences.concatenate([
            warm.draw(stream.child("candidate", str(k)).uniforms(at, 16, 6), np.arange(at, at + 16) % 3)
            for at in range(0, 48, 16)
        ])
        for k in range(3)
    ]  # fmt: skip
    score = np.stack([d.log_prob / d.lengths for d in drawn])
    pick = score.argmax(axis=0)
    assert len(set(pick[:n].tolist())) == 3
    assert rows(x) == [rows(drawn[pick[i]])[i] for i in range(n)]
    assert (x.prompt_index == np.arange(n) % 3).all()
    np.testing.assert_allclose(x.log_prob, naive_log_prob(warm, x), atol=1e-3)
    np.testing.assert_allclose(x.log_prob, warm.log_prob(x), atol=1e-4)


@pytest.mark.parametrize(
    "s",
    [
        setting(accept={"by": "stopped", "min": 1}),
        setting(top_p=0.9, best_of=4, rank_by="-length", accept={"by": "length", "min": 2}),
        setting(best_of=2, rank_by="truth_log_prob"),
        setting(best_of=2, rank_by="count_b"),
    ],
    ids=lambda s: s.slug,
)
def test_rows_do_not_depend_on_the_call(llama: CausalLM, s: hm.Selectivity) -> None:
    law = llama.law(["w5", "w7 w8"], max_new_tokens=6, stop=[1, *range(20, 32)], block_rows=16)
    chosen = hm.choose(law, s, truth=law)
    whole = chosen.sample(64, seed=4)
    part = chosen.sample(20, seed=4, start=21)
    assert isinstance(whole, Sequences)
    assert isinstance(part, Sequences)
    assert rows(part) == rows(whole)[21:41]
    assert part.draws is not None
    assert whole.draws is not None
    assert (part.draws == whole.draws[21:41]).all()
    assert (part.log_prob == whole.log_prob[21:41]).all()
    if s.accept is not None and s.accept.by == "stopped":
        assert whole.stopped.all()
        assert whole.draws.max() > 1


def test_draws_survive_their_file(llama: CausalLM, tmp_path: Path) -> None:
    law = llama.law("w5", max_new_tokens=4, block_rows=8)
    x = hm.choose(law, setting(best_of=2, rank_by="length")).sample(8, seed=1)
    assert isinstance(x, Sequences)
    save_sequences(x, tmp_path / "rows.parquet")
    back = load_sequences(tmp_path / "rows.parquet")
    assert back.draws is not None
    assert back.draws.tolist() == [2] * 8
    plain = law.sample(8, seed=1)
    save_sequences(plain, tmp_path / "plain.parquet")
    assert load_sequences(tmp_path / "plain.parquet").draws is None


def test_select_points_to_choose(llama: CausalLM) -> None:
    with pytest.raises(InputError, match=r"hydrometer\.choose"):
        llama.law("w5", selectivity=setting(best_of=2, rank_by="length"))


def test_a_run_draws_blocks_and_goes_on(tmp_path: Path, llama_folder: Path) -> None:
    best = {"temperature": 0.8, "best_of": 2, "rank_by": "log_prob_unselected"}
    stopped = {"accept": {"by": "length", "max": 5}}
    truth = {"source": str(llama_folder), "max_new_tokens": 6, "prompts": None, "stop": [1, *range(20, 32)]}
    chain = {"truth": truth, "selectivity": [{"temperature": 1.0}, best, stopped], "decoding": [best]}
    chain["judge_dtype"] = "bfloat16"
    made = hm.run(write_spec(lm_spec(llama_folder, **chain), tmp_path), out=tmp_path / "out")
    assert not made.failed_cells
    cells = {c["group"]: c["metrics"] for c in made.results["cells"]}
    slug = "temperature0.8_bestof2-by-log_prob_unselected"
    for group in (f"lm.teacher.decoded-{slug}", f"lm.student.direct.decoded-{slug}"):
        assert "recall" not in cells[group]
        assert abs(cells[group]["precision_bias"]["value"]) < 1
        assert not {"recall_bias", "entropy_bias"} & set(cells[group])
    assert cells["lm.teacher.decoded-accept-by-length-max-5.0"]["length"]["value"] <= 5
    assert "recall" in cells[f"lm.student.distilled-{slug}"]
    infos = [json.loads(p.read_text()) for p in (tmp_path / "out" / "artifacts").glob("draw-*/meta.json")]
    assert any(i["info"].get("candidates") == 2 * i["info"]["rows"] for i in infos)
    again = hm.run(write_spec(lm_spec(llama_folder, **chain), tmp_path), out=tmp_path / "out")
    assert not again.outcome.computed
