"""A fit that is killed goes on from its last whole checkpoint, and ends with the same weights, bit for bit."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import TrainingArguments  # noqa: E402

from hydrometer.core.errors import FitError, SpecError  # noqa: E402
from hydrometer.core.io.locking import claim  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest, Fitted  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import distributed, trainer  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.store.artifacts import ArtifactStore  # noqa: E402

STEPS = 9  # three epochs of three steps


class Killed(BaseException):
    """What a signal would be."""


def _request(llama: CausalLM, partial: Path | None, **fields: object) -> FitRequest:
    law = llama.law("w3 w4", max_new_tokens=6, block_rows=16)
    training = Training(
        **{
            "num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 0.01, "bf16": False,
            "save_steps": 2, **fields,
        }
    )  # fmt: skip
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0, 1)), training=training)
    rows, held_out = law.sample(40, seed=3), law.sample(16, seed=4)
    return FitRequest(rows, held_out, law, None, level, "truth", "mle", Stream(7), partial=partial)


def _killed_at(request: FitRequest, step: int) -> None:
    def tick(done: float, total: float, what: str) -> None:
        if what == "steps" and done == step:
            raise Killed

    with pytest.raises(Killed):
        fit(replace(request, tick=tick))


def _equal(a: Fitted[CausalLaw], b: Fitted[CausalLaw]) -> None:
    ours, theirs = (x.model.lm.model.state_dict() for x in (a, b))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for name in ("validation", "best_epoch", "steps"):
        assert a.info[name] == b.info[name]


def _left(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "partial").iterdir() if p.is_dir()]


@pytest.fixture(scope="module")
def whole(llama: CausalLM) -> Fitted[CausalLaw]:
    return fit(_request(llama, None, save_steps=None))


@pytest.mark.parametrize(("killed", "resumed"), [(3, 2), (5, 4), (7, 6), (9, 8)])
def test_a_killed_fit_goes_on_bit_for_bit(
    llama: CausalLM, whole: Fitted[CausalLaw], tmp_path: Path, killed: int, resumed: int
) -> None:
    request = _request(llama, tmp_path / "partial")
    _killed_at(request, killed)
    assert [p.name for p in _left(tmp_path)] == [f"checkpoint-{resumed}"]
    steps: list[float] = []
    again = fit(replace(request, tick=lambda done, total, what: steps.append(done)))
    assert steps[0] == resumed + 1
    assert again.info["resumed"] == f"checkpoint-{resumed}"
    _equal(again, whole)


def test_saving_changes_no_result(llama: CausalLM, whole: Fitted[CausalLaw], tmp_path: Path) -> None:
    _equal(fit(_request(llama, tmp_path / "partial", save_steps=1)), whole)
    assert not list((tmp_path / "partial").rglob("training_args.bin"))


def test_damaged_checkpoints_are_discarded_and_said(llama: CausalLM, whole: Fitted[CausalLaw], tmp_path: Path) -> None:
    request = _request(llama, tmp_path / "partial")
    for damage in ("flip", "truncate", "mark", "unfinished"):
        _killed_at(request, 5)
        path = tmp_path / "partial" / "checkpoint-4"
        weights = path / "model.safetensors"
        raw = bytearray(weights.read_bytes())
        match damage:
            case "flip":
                raw[-5] ^= 1
                weights.write_bytes(bytes(raw))
            case "truncate":
                (path / "optimizer.pt").write_bytes(b"")
            case "mark":
                (path / "whole.json").write_text("[]")
            case _:
                (path / "whole.json").unlink()
        said: list[str] = []
        again = fit(replace(request, tick=lambda done, total, what, said=said: said.append(what)))
        assert "resumed" not in again.info
        assert any("checkpoint at step 4 was discarded" in what for what in said)
        assert "step 4" in json.dumps(again.info["discarded"])
        _equal(again, whole)
        for left in _left(tmp_path):
            for file in left.iterdir():
                file.unlink()
            left.rmdir()


_SAID = ("waiting for another run that makes the", "no checkpoints: another run is making the")


def test_two_runs_that_make_one_fit_do_not_meet(
    llama: CausalLM, whole: Fitted[CausalLaw], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a shared cache: the later keeps no checkpoints, and leaves those of the earlier where they are."""
    monkeypatch.setattr(trainer, "_LEASE", 0.0)
    store = ArtifactStore(tmp_path)
    partial, said = store.partial("fit", "0" * 64), list[str]()
    request = _request(llama, partial)
    _killed_at(request, 5)
    with claim(partial, 0) as mine:
        assert mine
        other = fit(replace(request, tick=lambda done, total, what: said.append(what)))
        store.discard_partial("fit", "0" * 64)
        assert [p.name for p in partial.iterdir() if p.is_dir()] == ["checkpoint-4"]
    assert said[:2] == [f"{w} same fit" for w in _SAID]
    assert "another run" in str(other.info["checkpoints"])
    assert "resumed" not in other.info
    _equal(other, whole)
    assert fit(request).info["resumed"] == "checkpoint-4"
    store.discard_partial("fit", "0" * 64)
    assert not partial.exists()


def test_nothing_is_written_where_nothing_is_kept(
    llama: CausalLM, whole: Fitted[CausalLaw], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "__file__", str(tmp_path / "trainer.py"))
    _equal(fit(_request(llama, None)), whole)
    assert not list(tmp_path.iterdir())


def test_accelerators_beside_the_one_make_no_other_batches(
    llama: CausalLM, whole: Fitted[CausalLaw], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingArguments.__post_init__

    def two(self: TrainingArguments) -> None:
        real(self)
        self._n_gpu = 2  # as on a machine with two

    monkeypatch.setattr(TrainingArguments, "__post_init__", two)
    _equal(fit(_request(llama, None, save_steps=None)), whole)


def test_a_checkpoint_is_completed_when_all_processes_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, met = distributed.Distributed.__new__(distributed.Distributed), []
    group.rank = 0
    monkeypatch.setattr(group, "broadcast", lambda value: value)
    monkeypatch.setattr(distributed.dist, "barrier", lambda: met.append(True))
    epochs: Any = None
    with contextlib.ExitStack() as held:
        kept = trainer._checkpoints(Training(num_workers=2, save_steps=1), tmp_path, epochs, group, held)
    assert kept is not None
    assert kept.barrier is not None
    kept.barrier()
    assert met


def test_all_processes_of_a_fit_keep_checkpoints_or_none(tmp_path: Path) -> None:
    for rank, rank_0_has_it in ((0, True), (0, False), (1, True), (1, False)):
        group: Any = SimpleNamespace(rank=rank, barrier=None, broadcast=lambda value, told=rank_0_has_it: told)
        epochs: Any = SimpleNamespace(notes={}, tick=lambda *what: None)
        with contextlib.ExitStack() as held:
            kept = trainer._checkpoints(Training(num_workers=2, save_steps=1), tmp_path / "p", epochs, group, held)
        assert (kept is not None) is rank_0_has_it
        assert ("checkpoints" in epochs.notes) is not rank_0_has_it


def test_a_group_meets_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (tmp_path / "a b").mkdir()
    with distributed.group("cpu", 0, 1, tmp_path / "a b" / "meeting"):
        assert torch.distributed.get_world_size() == 1


def test_a_fit_of_several_is_not_made_by_one(llama: CausalLM) -> None:
    with pytest.raises(FitError, match="set num_workers: 1"):
        fit(_request(llama, None, num_workers=2, save_steps=None))


def test_keys_are_those_from_before_these_fields(llama: CausalLM) -> None:
    plain = Training().model_dump(mode="json", context="key")
    assert not {"num_workers", "strategy", "save_steps"} & set(plain)
    assert Training(save_steps=5, strategy="fsdp").model_dump(mode="json", context="key") == plain
    assert Training(save_steps=5).model_dump(mode="json") == {**plain, "save_steps": 5}
    two = Training(num_workers=2).model_dump(mode="json", context="key")
    assert two == {**plain, "num_workers": 2, "strategy": "ddp"}
    assert Training.model_validate(two).num_workers == 2
    with pytest.raises(SpecError, match="strategy ddp"):
        Training(num_workers=2, strategy="fsdp", save_steps=5)
