"""A teacher of another tokenizer: its rows cross to the students as text, and all are compared on texts."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import without_timings, write_spec  # noqa: E402
from hydrometer.core.errors import InputError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.data.parts import parts_of  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.truth_spec import TextFile  # noqa: E402
from hydrometer.models.rows.sequences import Sequences, load_sequences  # noqa: E402
from hydrometer.report import build_report  # noqa: E402
from hydrometer.run.graph.plan import plan_run  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.stages.nodes import DrawNode  # noqa: E402
from tiny import make_llama, make_merging_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.003, "bf16": False}
WORDS = ["<bos>", "<eos>", "<unk>", "a", "b", "c", "d", "cb"]
"""The teacher's: it says "cb" as one token or as two, and "d", which the students' tokenizer lacks."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}c{% endif %}"


def make_other() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("cb|."), "isolated")
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of two tokenizers, prompts, and answers to them."""
    root = tmp_path_factory.mktemp("world")
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "layers": 1}
    CausalLM(make_llama(vocab=9, seed=3, **small), make_merging_tokenizer()).save(root / "truth")
    CausalLM(make_llama(vocab=8, seed=4, initializer_range=0.15, **small), make_other()).save(root / "teacher")
    short = make_llama(vocab=8, seed=4, max_position_embeddings=4, **small)
    CausalLM(short, make_other()).save(root / "short")
    for part in (make_llama(vocab=7, seed=4, **small), make_other()):
        part.save_pretrained(root / "narrow")
    rng = np.random.default_rng(3)
    asked = ["".join(t) for t in itertools.product("abc", repeat=2)]
    rows = [
        {"prompt": p, "completion": "".join(rng.choice(list("abc"), int(rng.integers(1, 4))))}
        for p in asked
        for _ in "ab"
    ]
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in asked))
    (root / "texts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return root


def spec_of(folder: Path, world: Path, truth: dict[str, Any] | None = None, **chain: Any) -> Path:
    prompts = {"file": str(world / "prompts.jsonl"), "evaluate": 0.34}
    body: dict[str, Any] = {
        "family": "causal_lm",
        "truth": {"source": str(world / "truth"), "max_new_tokens": 3} | (truth or {"prompts": prompts}),
        "teacher": {"source": str(world / "teacher")},
        "student": {"init": "truth", "training": TRAINING},
        "data": {"train": 32, "validate": 8, "distill": 64, "evaluate": 96},
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.5}],
        "threads": 1, "block_rows": 32, "draw_dtype": "float32", **chain,
    }  # fmt: skip
    return write_spec({"name": "tiny", "seeds": 1, "chains": {"lm": body}}, folder)


def outcomes(law: CausalLaw, prompt: int) -> dict[tuple[str, bool], float]:
    """Every text that the teacher may say after a prompt and whether it ends, with its probability, by enumeration."""
    rows = [r for n in (1, 2, 3) for r in itertools.product(range(8), repeat=n)]
    rows = [r for r in rows if 1 not in r[:-1] and (r[-1] == 1 or len(r) == 3)]
    ids = np.array([[*r, *[0] * (3 - len(r))] for r in rows])
    lengths, stopped = np.array([len(r) for r in rows]), np.array([r[-1] == 1 for r in rows])
    at = np.full(len(rows), prompt)
    found: Counter[tuple[str, bool]] = Counter()
    log_prob = law.log_prob(Sequences(law.prompts.ids, at, ids, lengths, stopped, np.zeros(len(rows))))
    for r, lp in zip(rows, log_prob, strict=True):
        found["".join(WORDS[t] for t in r if t > 2), r[-1] == 1] += float(np.exp(lp))
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    return found


def test_rows_cross_as_the_texts_that_the_teacher_says(tmp_path: Path, world: Path) -> None:
    """Their distribution is that of an enumeration of the teacher, at its own selectivity; ends and cuts stay."""
    chain = hm.load_spec(spec_of(tmp_path, world)).chains["lm"]
    teacher = CAUSAL_LM.open_given(chain, "teacher", "float32").select(Selectivity(temperature=0.7))
    assert isinstance(teacher, CausalLaw)
    n, mine = 6000, make_merging_tokenizer()
    rows, facts = CAUSAL_LM.draw_block(chain, teacher, "teacher", "train", n, stream=Stream(5), start=0)
    drawn = teacher.sample_block(n, stream=Stream(5), start=0)
    assert isinstance(rows, Sequences)
    prompts = CAUSAL_LM.truth(chain, "float32").prompts
    assert rows.prompt_ids == prompts.ids != teacher.prompts.ids
    assert prompts.texts == teacher.prompts.texts
    said: list[Counter[tuple[str, bool]]] = [Counter() for _ in prompts.ids]
    changed = 0
    for i in range(n):
        ids = rows.row(i).tolist()
        whole = "".join(WORDS[t] for t in drawn.row(i).tolist() if t > 2)
        text = mine.decode(ids, skip_special_tokens=True)
        changed, kept = changed + ("d" in whole), whole.replace("d", "")
        assert (1 in ids) == (ids[-1:] == [1]) == bool(rows.stopped[i])  # the students' end, where there is room for it
        if rows.stopped[i]:
            assert drawn.stopped[i]
        assert text == kept or (len(ids) == 3 and not rows.stopped[i] and kept.startswith(text))
        assert not drawn.stopped[i] or rows.stopped[i] or len(ids) == 3
        if 2 not in ids:
            said[int(rows.prompt_index[i])][text, bool(rows.stopped[i])] += 1
    counts = facts["crossed"]
    assert isinstance(counts, dict)
    assert counts["changed"] == changed > 0
    assert counts["cut"] == int((~rows.stopped).sum()) > 0
    assert counts["tokens"] == int(drawn.lengths.sum())
    assert 0 < counts["respelled"] < n
    for p, seen in enumerate(said):
        total = int((rows.prompt_index == p).sum())
        law = {
            k: q for k, q in outcomes(teacher, p).items() if len(k[0]) <= 2 and "d" not in k[0]
        }  # the others are cut
        z = [(seen[k] - total * q) / np.sqrt(total * q * (1 - q)) for k, q in law.items() if total * q > 20]
        assert len(z) >= 4
        assert max(abs(v) for v in z) < 5


def test_the_teacher_is_asked_by_its_own_template(tmp_path: Path, world: Path) -> None:
    """And a run keeps what it was asked, beside what the students are."""
    merging = make_merging_tokenizer()
    merging.chat_template = TEMPLATE.replace("%}c{%", "%}b{%")
    CausalLM(make_llama(vocab=9, seed=3, layers=1), merging).save(tmp_path / "truth")
    truth = {"prompts": {"file": str(world / "prompts.jsonl"), "chat": True}, "source": str(tmp_path / "truth")}
    chain = hm.load_spec(spec_of(tmp_path, world, truth)).chains["lm"]
    assert CAUSAL_LM.open_given(chain, "teacher", "float32").prompts.written == tuple(
        f"{a}{b}c" for a, b in itertools.product("abc", repeat=2)
    )
    kept = json.loads(json.dumps(CAUSAL_LM.rendered(chain)))
    assert kept["prompts_written"][0] == "aab"
    kept["teacher"]["prompt_ids"][0] = [5]
    again = CAUSAL_LM.with_rendered(chain, kept)
    assert CAUSAL_LM.open_given(again, "teacher", "float32").prompts.ids[0] == (5,)
    assert CAUSAL_LM.given_identity(again, "teacher") != CAUSAL_LM.given_identity(chain, "teacher")


def cells_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    jsonschema.validate(results, SCHEMA)
    assert not [c["reason"] for c in results["cells"] if c["status"] == "failed"]
    return {c["id"]: c["metrics"] for c in results["cells"]}


def every_prompt(law: CausalLaw, chain: Any) -> tuple[tuple[int, ...], ...]:
    """Prompts of both parts in a law's own ids."""
    judged = CAUSAL_LM.asked(chain, law, "judge")
    assert isinstance(judged, CausalLaw)
    return law.prompts.ids + judged.prompts.ids


def near(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return abs(a["value"] - b["value"]) < 5 * np.hypot(a["se"], b["se"])


def test_a_run_under_a_model(tmp_path: Path, world: Path) -> None:
    """The teacher's figures are those of `judge`, the students' are of ids and of texts; the gate compares bytes."""
    path = spec_of(tmp_path, world, judge_training_prompts=True)
    found = hm.run(path, out=tmp_path / "out")
    cells = cells_of(found.results)
    _, judged = parts_of(hm.load_spec(path).chains["lm"].truth.prompts)  # type: ignore[attr-defined]
    assert judged is not None
    asked = "\n".join(json.dumps({"prompt": turns[-1][1]}) for _, turns in judged.asked)
    (tmp_path / "judged.jsonl").write_text(asked)
    alone = judge_models(
        [world / "teacher", world / "truth"], truth=world / "truth", prompts=tmp_path / "judged.jsonl", chat=False,
        answers_per_prompt=200, max_new_tokens=3, out=tmp_path / "judged",
    )  # fmt: skip
    oracle = alone.results["cells"][1]["metrics"]
    teacher = cells["lm.teacher"]
    assert not {"precision", "recall", "kl_student_truth"} & set(teacher)
    assert set(oracle) <= set(teacher)
    for name in ("precision_per_byte", "recall_per_byte", "entropy_per_byte", "round_trip_own", "length"):
        assert near(teacher[name], oracle[name])
        assert teacher[name]["method"] == oracle[name]["method"]
    student = cells["lm.student.distilled-temperature0.5.seed0"]
    assert student["precision"]["value"] == pytest.approx(
        -student["entropy"]["value"] - student["kl_student_truth"]["value"], abs=1e-9
    )
    assert {"precision_per_byte", "recall_per_byte"} <= set(student)
    chain = found.results["summary"]["chains"]["lm"]
    gate = chain["gate"]["contrast"]
    assert gate["metric"] == "recall_per_byte"
    direct = cells["lm.student.direct.seed0"]
    assert gate["value"] == pytest.approx(teacher["recall_per_byte"]["value"] - direct["recall_per_byte"]["value"])
    assert gate["se"] < np.hypot(teacher["recall_per_byte"]["se"], direct["recall_per_byte"]["se"])  # of the same rows
    assert gate["pairing"] == "row"
    pairs = {(c["a"], c["b"], c["metric"]) for c in found.results["contrasts"]}
    assert ("lm.teacher", "lm.student.direct", "length") not in pairs
    assert {c["rows"] for c in chain["crossed"]} == {72}
    assert [c["selectivity"] for c in chain["crossed"]] == [None, {"temperature": 0.5}]
    of_gap = {g["group"]: g["figures"] for g in chain["generalisation"]}
    assert {"precision", "recall"} <= set(of_gap["lm.student.direct"])
    page = build_report([tmp_path / "out"]).read_text(encoding="utf-8")
    assert "crossed as text" in page
    assert "per byte of text" in page
    lm = hm.load_spec(path).chains["lm"]
    own, mine = CAUSAL_LM.open_given(lm, "teacher", "float32"), CAUSAL_LM.truth(lm, "float32")
    ids: dict[str, tuple[tuple[int, ...], ...]] = {"train": mine.prompts.ids, "judge": every_prompt(own, lm)}
    for node in plan_run(hm.load_spec(path)).nodes.values():
        if isinstance(node, DrawNode) and node.law.role == "teacher":
            rows = load_sequences(tmp_path / "out" / "artifacts" / f"draw-{node.key}" / "rows.parquet")
            assert set(rows.prompt_ids) <= set(ids[node.purpose])
    hm.export(tmp_path / "out", to=tmp_path / "own.jsonl", stream="evaluate", cell="lm.teacher")
    exported = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert {r["prompt"] for r in exported} == {turns[-1][1] for _, turns in judged.asked}
    assert any("d" in r["completion"] for r in exported)
    advice = hm.advise(tmp_path / "out")
    assert {c["id"] for c in advice.data["candidates"]} >= {"lm.student.distilled-temperature0.5"}
    assert advice.data["expected"]["on"] == "fresh rows"
    again = hm.run(path, out=tmp_path / "out")
    assert not again.outcome.computed
    assert without_timings(again.results) == without_timings(found.results)


@pytest.mark.parametrize("reference", ["teacher", "truth"])
def test_a_run_on_texts(tmp_path: Path, world: Path, reference: str) -> None:
    """Precision is of texts under the reference, whichever tokenizer it has: per answer and per byte, as of `judge`."""
    named = "teacher" if reference == "teacher" else str(world / "truth")
    truth = {"text": {"file": str(world / "texts.jsonl"), "chat": False}, "reference": named}
    path = spec_of(tmp_path, world, truth, data={"train": 32, "validate": 4, "distill": 32, "evaluate": 160})
    found = hm.run(path, out=tmp_path / "out")
    cells = cells_of(found.results)
    _, judged = parts_of(TextFile(file=str(world / "texts.jsonl"), chat=False))
    assert judged is not None
    rows = [
        {"prompt": judged.asked[int(p)][1][-1][1], "completion": text}
        for p, text in zip(judged.prompt_index, judged.answers, strict=True)
    ]
    (tmp_path / "held.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    student = "lm.student.distilled-temperature0.5.seed0"
    fit = next(c for c in found.results["cells"] if c["id"] == student)["artifacts"]["fit"]
    alone = judge_models(
        [world / "teacher", tmp_path / "out" / "artifacts" / fit], truth_text=tmp_path / "held.jsonl", chat=False,
        reference=world / reference, answers_per_prompt=200, max_new_tokens=3, out=tmp_path / "judged",
    )  # fmt: skip
    judges = {c["id"]: c["metrics"] for c in alone.results["cells"] if c["role"] == "student"}
    compared: list[str] = []
    for cell, oracle in zip(("lm.teacher", student), judges.values(), strict=True):
        mine = cells[cell]
        assert mine["recall"]["value"] == pytest.approx(oracle["recall"]["value"], rel=1e-5)
        name = "precision_reference_per_byte"
        if name in oracle:  # by ids where the tokenizer is the reference's
            compared.append(cell)
            assert near(mine[name], oracle[name])
            assert near(mine["entropy_per_byte"], oracle["entropy_per_byte"])
        for figure in ("precision_reference", "entropy", "precision_reference_per_byte"):
            assert mine[figure]["method"] == "canonical"
        assert not [name for name in mine if name.startswith("kl_")]  # a difference of bounds is none
    assert compared == [student if reference == "teacher" else "lm.teacher"]
    chain = found.results["summary"]["chains"]["lm"]
    assert chain["gate"]["contrast"]["metric"] == "recall"
    assert "crossed as text" in build_report([tmp_path / "out"]).read_text(encoding="utf-8")
    pairs = {(c["a"], c["b"], c["metric"]) for c in found.results["contrasts"]}
    assert ("lm.student.distilled-temperature0.5", "lm.student.direct", "precision_reference") in pairs
    assert ("lm.teacher", "lm.student.direct", "recall_per_token") not in pairs
    assert {c["id"] for c in hm.advise(tmp_path / "out", fresh=False).data["candidates"]} >= {
        student.removesuffix(".seed0")
    }


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ({"student": {"init": "above", "training": TRAINING}}, "student: the teacher's weights are of another"),
        ({"student": {"init": {"layers_of": "above", "layers": [0]}, "training": TRAINING}}, "nothing starts from"),
        ({"selectivity": [{"best_of": 2, "rank_by": "truth_log_prob"}]}, "another tokenizer are not chosen"),
        ({"teacher": {"source": "TEACHER", "training": TRAINING}}, "teacher: the source's vocabulary is not the"),
        ({"truth": {"prompts": {"file": "UNKNOWN"}}}, "the teacher's tokenizer cannot write a prompt"),
        ({"teacher": {"source": "SHORT"}}, "prompt and answer exceed the teacher's max_position_embeddings"),
        ({"teacher": {"source": "NARROW"}}, "fewer output rows than its tokenizer has ids"),
    ],
)  # fmt: skip
def test_what_needs_one_vocabulary_is_refused(tmp_path: Path, world: Path, chain: dict[str, Any], words: str) -> None:
    (tmp_path / "u.jsonl").write_text(json.dumps({"prompt": "az"}))
    known = json.dumps(chain).replace("UNKNOWN", str(tmp_path / "u.jsonl"))
    for name in ("teacher", "short", "narrow"):
        known = known.replace(name.upper(), str(world / name))
    body = json.loads(known)
    with pytest.raises(InputError, match=words) as caught:
        plan_run(hm.load_spec(spec_of(tmp_path, world, body.pop("truth", None), **body)))
    assert "\n" not in str(caught.value)
