"""Every check of a language-model chain fires on a planted fault and is silent on a sound chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, decoders, models, processors  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from hydrometer.core.findings import Finding  # noqa: E402
from hydrometer.models.causal_lm.cost.memory import count_parameters  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from hydrometer.models.causal_lm.preflight.prompt_checks import examine_parts  # noqa: E402
from hydrometer.models.causal_lm.preflight.truth_probe import take_probe  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.models.causal_lm.training.layers import layers_config  # noqa: E402
from tiny import make_gpt2, make_llama, make_qwen2, make_tokenizer  # noqa: E402


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write both as they are, without asking whether they fit."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sound_tokenizer(size: int = 8) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(size)
    tokenizer.pad_token = "<unk>"
    return tokenizer


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight ids, two layers: most answers stop within 24 tokens."""
    return save(tmp_path_factory.mktemp("sound") / "m", make_llama(vocab=8, layers=2, seed=5), sound_tokenizer())


def chain(source: Path | str, **changes: Any) -> CausalLMChain:
    fields: dict[str, Any] = {
        "truth": {"source": str(source), "max_new_tokens": 24, "prompts": "w5 w6"},
        "teacher": {"init": {"layers_of": "truth", "layers": [0, 1]}},
        "student": {"init": {"layers_of": "truth", "layers": [0]}, "training": {"num_train_epochs": 60}},
        "data": {"train": 64, "validate": 16, "distill": 64, "evaluate": 512},
        "selectivity": [{"temperature": 1}, {"temperature": 0.8}],
        "threads": 1, "draw_dtype": "float32",
    }  # fmt: skip
    truth = fields["truth"] | changes.pop("truth", {})
    return CausalLMChain.model_validate(fields | changes | {"truth": truth}, context={"base": Path(source).parent})


def found(c: CausalLMChain) -> dict[str, Finding]:
    return {f.code: f for f in CAUSAL_LM.examine(c)}


def scratch(**architecture: Any) -> dict[str, Any]:
    return {"student": {"init": "scratch", "architecture": {"num_hidden_layers": 1, **architecture}}}


def jsonl(folder: Path, *rows: str, chat: bool = False) -> dict[str, Any]:
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": r}) for r in rows))
    return {"truth": {"prompts": {"file": str(folder / "prompts.jsonl"), "chat": chat}}}


def test_nothing_is_found_in_a_sound_chain(sound: Path) -> None:
    assert found(chain(sound)) == {}


def test_equal_chains_give_equal_findings(sound: Path) -> None:
    c = chain(sound, draw_dtype="bfloat16")
    assert CAUSAL_LM.examine(c) == CAUSAL_LM.examine(c)
    assert "draw-dtype" in found(c)


def test_prompts_of_training_that_are_judged_on_are_said(sound: Path, tmp_path: Path) -> None:
    """Where a file has several, and none are kept apart; not of one prompt, twice or alone, nor of none."""
    fields = jsonl(tmp_path, "w3", "w4", "w4")
    prompts = fields["truth"]["prompts"]

    def of(**more: Any) -> list[Finding]:
        return list(CAUSAL_LM.examine_parts(chain(sound, truth={"prompts": prompts | more})))

    (shared,) = of()
    assert (shared.code, shared.severity) == ("prompts-shared", "warning")
    assert shared.what == "models are judged on the 2 prompts that they are trained on"
    assert shared == found(chain(sound, **fields))["prompts-shared"]
    assert of(evaluate=0.5) == []
    jsonl(tmp_path, "w3", "w3")
    assert of() == []
    for alone in (None, "w3"):
        assert CAUSAL_LM.examine_parts(chain(sound, truth={"prompts": alone})) == []


def test_few_judged_prompts_and_what_trains_are_said(sound: Path, tmp_path: Path) -> None:
    """Of a sample of prompts only, and not of thirty; the remedy leaves thirty to judge on."""

    def of(n: int, **more: Any) -> dict[str, str]:
        prompts = jsonl(tmp_path, *(f"w{3 + i % 5} w{3 + i // 5 % 5} w{3 + i // 25}" for i in range(n)))["truth"][
            "prompts"
        ]
        c = chain(sound, truth={"prompts": prompts | more}, data={"train": 50, "validate": 16, "evaluate": 64})
        return {f.code: f"{f.what}; {f.fix}" for f in examine_parts(c)}

    few = of(60, evaluate=0.2)
    assert few["few-prompts"] == (
        "12 prompts carry every interval; judge on 30 prompts or more: give 150 at evaluate: 0.2, or set evaluate: 0.5"
    )
    assert few["parts"].startswith(
        "50 answers to 48 prompts train, and 16 other answers, drawn apart to 16 of these prompts, choose the epoch; "
        "models are judged on 12 prompts of which none has a part in either;"
    )
    assert set(of(60, evaluate=0.5)) == {"parts"}
    assert set(of(60, evaluate=0.2, are="fixed")) == {"parts"}
    assert of(29, are="sample")["few-prompts"].startswith(
        "29 prompts carry every interval; judge on 30 prompts or more"
    )
    assert of(30, are="sample") == of(20) == {}
    prompts = jsonl(tmp_path, *(f"w3 w{3 + i}" for i in range(5)))["truth"]["prompts"]
    assert found(chain(sound, truth={"prompts": prompts | {"evaluate": 0.4}}))["few-prompts"].severity == "warning"


def test_few_steps_from_no_working_network_are_said(sound: Path) -> None:
    """Of random weights and of a part of the layers; not of a whole network, nor of steps enough."""

    def of(init: Any, **more: Any) -> Finding | None:
        level = {"init": init, "training": {"num_train_epochs": 3, **more.pop("training", {})}}
        level |= {"architecture": {"num_hidden_layers": 1}} if init == "scratch" else {}
        return found(chain(sound, **{"student": level} | more)).get("few-steps")

    part = {"layers_of": "truth", "layers": [1]}
    said = of(part)
    assert said is not None
    assert said.severity == "warning"
    assert said.what == "the student starts from 1 of 2 layers and takes 6 steps directly and 6 steps distilled"
    one = of("scratch", data={"train": 64, "validate": 16, "distill": 1280, "evaluate": 512})
    assert one is not None
    assert one.what == "the student starts from random weights and takes 6 steps directly"
    both = of(part, teacher={"init": part, "training": {"max_steps": 99}}, training={"num_train_epochs": 50})
    assert both is not None
    assert both.what == "the teacher starts from 1 of 2 layers and takes 99 steps"
    assert of(part, training={"num_train_epochs": 50}) is None  # a hundred steps
    for whole in ("truth", "above", {"layers_of": "truth", "layers": [1, 0]}, {"source": str(sound)}):
        assert of(whole) is None


def test_beside_a_text_the_model_is_called_by_its_role(sound: Path, tmp_path: Path) -> None:
    """It is the teacher, or the reference: what is found of it is not of the truth, which is texts."""
    rows = [{"prompt": f"w3 w{3 + i % 5}", "completion": f"w{3 + i // 5}"} for i in range(25)]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(r) for r in rows))

    def of(**truth: Any) -> dict[str, Finding]:
        text = {
            "source": "",
            "prompts": None,
            "text": {"file": str(tmp_path / "answers.jsonl"), "chat": False, "evaluate": 0.5},
        }
        c = chain(
            sound, truth=text | truth, teacher={"source": str(sound)}, draw_dtype="bfloat16", judge_dtype="bfloat16",
            data={"train": 16, "validate": 2, "distill": 64, "evaluate": 4},
        )  # fmt: skip
        return found(c)

    for role, truth in (("teacher", {}), ("reference", {"reference": {"source": str(sound)}})):
        said = of(**truth)
        assert f"off the float32 {role}" in said["draw-dtype"].what
        assert f"the {role}'s log-probability is off" in said["judge-dtype"].what
        assert f"and the {role}'s entropy is" in said["coarse"].what
        assert not any("truth" in f.what for f in said.values())


def test_an_engine_that_draws_does_not_spare_the_weights(sound: Path) -> None:
    engine = {"openai": {"base_url": "http://127.0.0.1:1", "model": "m"}}
    said = found(chain(sound, engine=engine))["weights-opened"]
    assert said.severity == "note"
    assert said.what == "engine openai draws training rows, and does not spare opening the weights here"
    assert "weights-opened" not in found(chain(sound))


# -- what files and specification say ----------------------------------------

SPEC_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary-short": (scratch(vocab_size=4), "fatal"),
    "vocabulary-padding-differs": (scratch(vocab_size=12), "note"),
    "context-short": (scratch(max_position_embeddings=4), "fatal"),
    "no-stop": ({"truth": {"stop": []}}, "warning"),
    "eos-not-a-stop": ({"truth": {"stop": ["w5"]}}, "warning"),
    "bos-twice": ({"truth": {"prompts": "<bos> <bos> w3"}}, "warning"),
    "unknown-tokens": ({"truth": {"prompts": "w3 never-seen"}}, "warning"),
    "special-in-text": ({"truth": {"prompts": "w3 <eos> w4"}}, "note"),
    "student-larger": (
        {
            "teacher": {"init": {"layers_of": "truth", "layers": [0]}},
            "student": {"init": {"layers_of": "truth", "layers": [0, 1]}},
        },
        "warning",
    ),
    "coarse": ({"data": {"evaluate": 2}}, "warning"),
    "truncated": ({"truth": {"max_new_tokens": 4}}, "warning"),
    "judge-dtype": ({"judge_dtype": "bfloat16"}, "warning"),
}


@pytest.mark.parametrize("code", SPEC_FAULTS)
def test_a_fault_of_the_specification_is_found(sound: Path, code: str) -> None:
    change, severity = SPEC_FAULTS[code]
    here = found(chain(sound, **change))
    assert code in here
    assert here[code].severity == severity
    assert not {c for c, f in here.items() if f.is_fatal and c != code}


PROMPT_FAULTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "prompts-repeated": (("w3", "w4", "w3"), {}),
    "prompts-unanswered": (tuple(f"w3 w{3 + i % 5}" + " w4" * (i // 5) for i in range(20)), {"data": {"train": 10}}),
    "one-row-a-prompt": (("w3", "w4", "w5"), {"data": {"train": 16, "distill": 16, "evaluate": 5}}),
}


@pytest.mark.parametrize("code", PROMPT_FAULTS)
def test_a_fault_of_the_prompts_is_found(sound: Path, tmp_path: Path, code: str) -> None:
    rows, change = PROMPT_FAULTS[code]
    assert found(chain(sound, **jsonl(tmp_path, *rows), **change))[code].severity == "warning"
    assert code not in found(chain(sound, **jsonl(tmp_path, "w3", "w4")))


def test_repeats_are_counted_among_the_prompts_to_train_on(sound: Path, tmp_path: Path) -> None:
    prompts = jsonl(tmp_path, "w3", "w4", "w3")["truth"]["prompts"]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in (5, 6)))
    kept = {"prompts": prompts | {"evaluate": {"file": str(tmp_path / "kept.jsonl")}}}
    said = found(chain(sound, truth=kept))["prompts-repeated"]
    assert said.what == "1 of 3 prompts to train on repeat another one"


def test_special_tokens_in_a_users_words_break_the_template(sound: Path, tmp_path: Path) -> None:
    assert found(chain(sound, **jsonl(tmp_path, "w3 <eos> w4", chat=True)))["special-in-text"].severity == "warning"
    assert "special-in-text" not in found(chain(sound, **jsonl(tmp_path, "w3 w4", chat=True)))


FOLDERS: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "vocabulary-short": (lambda: (make_llama(vocab=8, layers=2), sound_tokenizer(9)), "fatal"),
    "vocabulary-padded": (lambda: (make_llama(vocab=10, layers=2), sound_tokenizer(8)), "note"),
    "pad-is-eos": (lambda: (make_llama(vocab=8, layers=2), make_tokenizer(8)), "note"),
    "stop-outside-vocabulary": (
        lambda: (_ending(make_llama(vocab=8, layers=2), [1, 99]), sound_tokenizer()), "warning",
    ),
    "stop-unreachable": (lambda: (_ending(make_llama(vocab=10, layers=2), [8]), _with_a_hole()), "warning"),
    "deterministic-prompt": (lambda: (_sharp(make_llama(vocab=8, layers=2, seed=5)), sound_tokenizer()), "warning"),
    "bos-twice-elsewhere": (lambda: (make_llama(vocab=8, layers=2, seed=5), _adding_bos()), "note"),
    "retokenisation": (lambda: (make_llama(vocab=8, layers=2, seed=5), _merging()), "note"),
}  # fmt: skip


def _ending(model: Any, ids: list[int]) -> Any:
    model.generation_config.eos_token_id = ids
    return model


def _sharp(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight *= 300
    return model


def _with_a_hole() -> PreTrainedTokenizerFast:
    """Ids 0 to 9 without 8: no token, so no law draws it."""
    words = {"<bos>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in (3, 4, 5, 6, 7, 9)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = make_tokenizer(8).backend_tokenizer.pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>", pad_token="<unk>")


def _adding_bos() -> PreTrainedTokenizerFast:
    tokenizer = sound_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return tokenizer


def _merging() -> PreTrainedTokenizerFast:
    """Byte-pair ids in which `a` and `b` side by side are always written `ab`."""
    words = {w: i for i, w in enumerate(["<bos>", "<eos>", "<unk>", "a", "b", "ab", "c", "d"])}
    inner = Tokenizer(models.BPE(words, [("a", "b")], unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<unk>"
    )


@pytest.mark.parametrize("code", FOLDERS)
def test_a_fault_of_the_model_is_found(tmp_path: Path, code: str) -> None:
    make, severity = FOLDERS[code]
    prompts = {"retokenisation": "cd", "bos-twice-elsewhere": "w3"}.get(code, "w5 w6")
    folder = save(tmp_path / "m", *make())
    here = found(chain(folder, truth={"prompts": prompts}))
    assert here[code].severity == severity


def test_padding_that_stops_names_levels_of_another_source(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", make_llama(vocab=8, layers=2, seed=5), make_tokenizer(8))
    here = found(chain(folder, student={"init": {"source": str(folder)}}))["pad-is-eos"]
    assert here.severity == "note"  # of nearly every pretrained model, and of no fit here
    assert "student starts from a source" in here.why


def test_de_quantised_weights_are_named(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = load.resolve
    told = "tiny, de-quantised from GGUF Q4_1 (not the original weights)"
    monkeypatch.setattr(
        load,
        "resolve",
        lambda *a, **k: replace(right(*a, **k), identity={"kind": "gguf", "sha256": "0"}, description=told),
    )
    assert told in found(chain(sound))["quantised-truth"].what


# -- what the probe says ----------------------------------------


@pytest.mark.parametrize(("by", "severity"), [(1e-5, None), (0.01, "warning"), (0.5, "fatal")])
def test_a_scorer_that_is_off_the_sampler_is_found(
    sound: Path, monkeypatch: pytest.MonkeyPatch, by: float, severity: str | None
) -> None:
    right = CausalLaw.score_steps

    def off(self: Any, x: Any, **options: Any) -> Any:
        steps = right(self, x, **options)
        return replace(steps, selected=steps.selected + by * x.within)

    monkeypatch.setattr(CausalLaw, "score_steps", off)
    here = found(chain(sound)).get("sampler-off-scorer")
    assert (here and here.severity) == severity


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_network_that_gives_no_finite_logits_is_fatal_and_nothing_else_is_said(tmp_path: Path, value: float) -> None:
    model = make_llama(vocab=8, layers=2, seed=5)
    with torch.no_grad():
        model.lm_head.weight[5] = value
    here = found(chain(save(tmp_path / "m", model, sound_tokenizer())))
    assert {c: f.severity for c, f in here.items()} == {"not-finite": "fatal"}


def test_answers_that_hardly_ever_stop(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", make_llama(vocab=2000, layers=2, max_position_embeddings=4096), sound_tokenizer(2000))
    short = found(chain(folder, truth={"max_new_tokens": 3}))
    assert short["stop-not-trained"].severity == "warning"
    long = found(chain(folder, truth={"max_new_tokens": 3000}))
    assert long["stop-not-seen"].severity == "note"
    assert "3000" in long["stop-not-seen"].why
    assert not {"stop-not-trained", "truncated"} & set(long)


def test_the_probe_is_the_law_of_the_run_and_small(sound: Path, tmp_path: Path) -> None:
    many = jsonl(tmp_path, *(f"w3 w{3 + i % 5}" + " w4" * (i // 5) for i in range(50)))
    c = chain(sound, **many)
    whole = CAUSAL_LM.truth(c, "float32")
    probe = take_probe(lambda precision: CAUSAL_LM.truth(c, precision), c)
    assert len(probe.x) == 32
    assert len(probe.law.prompts.ids) == 32
    assert set(probe.law.prompts.ids) <= set(whole.prompts.ids)
    assert probe.x.log_prob == pytest.approx(probe.scored.sum(-1), abs=1e-4)
    assert probe.drift is None
    assert probe.bias is None


def test_drift_is_the_divergence_of_the_drawn_law_from_the_truth(sound: Path) -> None:
    """KL(q||p) is not negative: on average rows are likelier under the law that drew them."""
    c = chain(sound, draw_dtype="bfloat16")
    probe = take_probe(lambda precision: CAUSAL_LM.truth(c, precision), c)
    assert probe.drift is not None
    gap, lengths = probe.drift
    assert gap.mean() > -4 * gap.std(ddof=1) / np.sqrt(len(gap))
    assert 0 < np.abs(gap).max() < 0.5 * lengths.max()


# -- sizes ----------------------------------------


@pytest.mark.parametrize(
    "make", [make_llama, lambda: make_gpt2(tied=True), lambda: make_gpt2(tied=False), make_qwen2],
    ids=["llama", "gpt2", "gpt2-untied", "qwen2"],
)  # fmt: skip
def test_parameters_are_counted_without_weights(make: Callable[[], Any]) -> None:
    model = make()
    assert count_parameters(model.config) == sum(p.numel() for p in model.parameters())
    n_layers = model.config.num_hidden_layers
    assert count_parameters(layers_config(model.config, [0, 1])) < count_parameters(model.config)
    assert model.config.num_hidden_layers == n_layers


def test_the_footprint_brackets_what_is_written(sound: Path, tmp_path: Path) -> None:
    c = chain(sound)
    law = CAUSAL_LM.truth(c, "float32")
    CAUSAL_LM.save_law(law, tmp_path)
    weights = (tmp_path / "model.safetensors").stat().st_size
    fit = CAUSAL_LM.footprint(c, "fit", "teacher", 64)  # all of the truth's layers
    assert fit.disk_least <= weights < fit.disk_most + 20_000
    assert fit.memory_least > 5 * fit.disk_least
    most = [CAUSAL_LM.footprint(c, "draw", "truth", n).disk_most for n in (100, 200, 300)]
    assert most[2] - most[1] == most[1] - most[0] > 0  # rows, beside what every block has of its own
    elsewhere = c.model_copy(update={"device": "cuda"})
    assert CAUSAL_LM.footprint(elsewhere, "fit", "teacher", 64).memory_least == 0


def test_a_fit_that_matches_its_teacher_holds_the_teachers_states(sound: Path) -> None:
    """32 numbers of float32 or bfloat16 a token, where they are kept; the teacher itself only where it is used."""

    def held(rows: int, **more: Any) -> int:
        return CAUSAL_LM.footprint(chain(sound, **more), "fit", "student", rows).memory_least

    plain = {"init": {"layers_of": "truth", "layers": [0]}, "training": {"bf16": False}}
    teacher = 4 * count_parameters(make_llama(vocab=8, layers=2).config)
    by_kl: dict[str, Any] = {"loss": ["mle", "kl_teacher_student"]}
    assert held(64, student=plain, **by_kl) - held(64, student=plain) == teacher + 32 * 24 * (64 * 4 + 16 * 4)
    narrow = plain | {"training": {"bf16": True}}
    assert held(64, student=narrow, **by_kl) - held(64, student=narrow) == teacher + 32 * 24 * (64 * 2 + 16 * 4)
    many = 2**30 // (32 * 24 * 4) + 1
    assert held(many, student=plain, **by_kl) - held(many, student=plain) == teacher + 32 * 24 * 16 * 4
    above = plain | {"init": {"layers_of": "above", "layers": [0]}}
    assert held(64, student=above) - held(64, student=plain) == teacher


def test_a_model_that_fits_no_tokenizer_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "m", make_llama(vocab=8, layers=2), sound_tokenizer(9))
    monkeypatch.setattr(CausalLM, "from_pretrained", lambda *a, **k: pytest.fail("opened"))
    assert found(chain(folder))["vocabulary-short"].is_fatal
