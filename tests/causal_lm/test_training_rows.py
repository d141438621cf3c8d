"""Rows as fits read them: the same rows, flat and small, from memory or from a file; and the same weights."""

from __future__ import annotations

import errno
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, write_spec  # noqa: E402
from hydrometer.core.errors import FolderError, InputError, StoreError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.capabilities import CompactRows  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM, CausalLMFamily  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.models.rows import training_rows  # noqa: E402
from hydrometer.models.rows.sequences import Sequences, save_sequences  # noqa: E402
from hydrometer.models.rows.training_rows import TrainingRows  # noqa: E402

LEVEL = LevelSpec.model_validate({
    "init": "scratch", "architecture": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
    "training": {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2},
})  # fmt: skip


@pytest.fixture(scope="module")
def truth(llama: CausalLM) -> CausalLaw:
    return llama.law(["w5", "w9 w10 w11"], max_new_tokens=8)


@pytest.fixture(scope="module")
def rows(truth: CausalLaw) -> Sequences:
    return truth.sample(100, seed=Stream(0).child("train"))


def blocks(x: Sequences, folder: Path, size: int = 40) -> list[Path]:
    """Rows in blocks, the last one longer than what is wanted of it, as draws are."""
    out: list[Path] = []
    for i, at in enumerate(range(0, len(x), size)):
        (folder / str(i)).mkdir(parents=True)
        CAUSAL_LM.save_samples(x.take(slice(at, at + size)), folder / str(i))
        out.append(folder / str(i))
    return out


@pytest.mark.parametrize("in_memory", [1 << 28, 0])
def test_fits_on_either_form_have_the_same_weights(
    truth: CausalLaw, rows: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(training_rows, "IN_MEMORY", in_memory)
    assert isinstance(CAUSAL_LM, CompactRows)
    (tmp_path / "scratch").mkdir()
    flat = CAUSAL_LM.load_training_rows(blocks(rows, tmp_path / "blocks"), 90, tmp_path / "scratch")
    x = rows.take(slice(0, 90))
    assert not list((tmp_path / "scratch").iterdir())  # the file has no name, so nothing can be left behind
    assert (flat.ids.base is None) == bool(in_memory)
    assert flat.ids.dtype == flat.prompt_index.dtype == np.uint8
    assert flat.ids.nbytes == flat.lengths.sum() == x.lengths.sum()
    assert len(flat) == 90
    assert all((flat.row(i) == x.row(i)).all() for i in range(90))
    assert (flat.log_prob == x.log_prob).all()
    assert (flat.strata == x.strata).all()
    request = FitRequest(x, None, truth, None, LEVEL, "truth", "mle", Stream(0).child("fit"))
    a, b = (fit(replace(request, data=d)) for d in (x, flat))
    first, second = (f.model.lm.model.state_dict() for f in (a, b))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert a.info == b.info
    with pytest.raises(InputError, match="held-out"):
        fit(replace(request, validate=flat))


def test_ids_take_the_smallest_type_that_holds_them(rows: Sequences, tmp_path: Path) -> None:
    for highest, dtype in ((255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)):
        ids = rows.ids.copy()
        ids[3, 0] = highest
        folder = tmp_path / str(highest)
        found = CAUSAL_LM.load_training_rows(blocks(replace(rows, ids=ids), folder), 100, tmp_path)
        assert found.ids.dtype == dtype
        assert found.row(3)[0] == highest


def test_prompts_that_are_a_sample_stay_one(rows: Sequences, tmp_path: Path) -> None:
    sample = replace(rows, prompts_are="sample")
    found = CAUSAL_LM.load_training_rows(blocks(sample, tmp_path), 100, tmp_path)
    assert (found.strata.labels == sample.strata.labels).all()
    one = replace(rows, prompt_ids=rows.prompt_ids[:1], prompt_index=np.zeros(100, np.int64))
    assert CAUSAL_LM.load_training_rows(blocks(one, tmp_path / "one"), 100, tmp_path).strata is None


def test_what_cannot_be_read_is_said_in_one_line(rows: Sequences, tmp_path: Path) -> None:
    folders = blocks(rows, tmp_path)
    with pytest.raises(StoreError, match="fewer rows"):
        CAUSAL_LM.load_training_rows(folders, 101, tmp_path)
    save_sequences(replace(rows, prompt_ids=((3,), (4,))), folders[1] / "rows.parquet")
    with pytest.raises(StoreError, match="different prompts"):
        CAUSAL_LM.load_training_rows(folders, 100, tmp_path)
    save_sequences(replace(rows, ids=rows.ids - 9), folders[1] / "rows.parquet")
    with pytest.raises(StoreError, match="below 0"):
        CAUSAL_LM.load_training_rows(folders, 100, tmp_path)
    (folders[2] / "rows.parquet").write_bytes(b"PAR1 broken PAR1")
    with pytest.raises(StoreError, match="cannot be read"):
        CAUSAL_LM.load_training_rows([folders[0], folders[2]], 60, tmp_path)


def test_a_full_disk_is_said_in_one_line(rows: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_rows, "IN_MEMORY", 0)
    opened = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **k: Full(opened(**k)))
    with pytest.raises(FolderError, match="No space left"):
        CAUSAL_LM.load_training_rows(blocks(rows, tmp_path / "b"), 100, tmp_path)


def test_a_run_fits_on_flat_rows_and_reads_no_log_probability_by_token(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FitRequest] = []
    whole = CausalLMFamily.fit

    def spied(self: CausalLMFamily, request: FitRequest) -> Any:
        seen.append(request)
        return whole(self, request)

    monkeypatch.setattr(CausalLMFamily, "fit", spied)
    spec = lm_spec(llama_folder, teacher="truth", selectivity=[{"temperature": 1.0}])
    result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    assert len(seen) == 2
    assert all(isinstance(r.data, TrainingRows) and isinstance(r.validate, Sequences) for r in seen)
    held = {name for name in ("token_log_prob", "token_log_prob_unselected") if hasattr(seen[0].data, name)}
    assert not held


def test_a_file_that_keeps_a_name_while_it_is_open_is_in_no_artifact(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system names a removed file .nfs... in its folder as long as somebody has it open."""
    opened: list[int] = []

    def on_nfs(dir: Path) -> Any:
        opened.append(1)
        return (dir / f".nfs{len(opened)}").open("w+b")

    monkeypatch.setattr(training_rows, "IN_MEMORY", 0)
    monkeypatch.setattr(training_rows, "tempfile", SimpleNamespace(TemporaryFile=on_nfs))  # numba has files of its own
    path = write_spec(lm_spec(llama_folder, teacher="truth", selectivity=[{"temperature": 1.0}]), tmp_path)
    assert not hm.run(path, out=tmp_path / "out").failed_cells
    named = list((tmp_path / "out").rglob(".nfs*"))
    assert len(named) == len(opened) == 2
    for file in named:  # as when the process ends
        file.unlink()
    assert not hm.run(path, out=tmp_path / "out").outcome.computed
