"""Sequences: what is recorded of each token is kept by taking, joining, saving and loading."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences

RECORDED = ("token_log_prob", "token_log_prob_unselected", "near_edge")


def make(n: int, width: int, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, n)
    lengths[0] = width
    mask = np.arange(width) < lengths[:, None]
    per_token = [np.where(mask, -rng.random((n, width)), 0).astype(np.float32) for _ in range(2)]
    return Sequences(
        ((1, 2), (3,)),
        rng.integers(0, 2, n),
        np.where(mask, rng.integers(0, 50, (n, width)), 0),
        lengths,
        rng.random(n) < 0.5,
        per_token[0].sum(-1, dtype=np.float64),
        *per_token,
        rng.integers(0, 4, n),
    )


def without(x: Sequences, *names: str) -> Sequences:
    return replace(x, **dict.fromkeys(names))


def assert_equal(x: Sequences, y: Sequences):
    for field in fields(x):
        a, b = getattr(x, field.name), getattr(y, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("missing", [(), RECORDED[:1], RECORDED[2:], RECORDED], ids=len)
def test_what_is_saved_is_loaded(tmp_path: Path, missing):
    x = without(make(30, 7), *missing)
    save_sequences(x, tmp_path / "rows.parquet")
    assert_equal(load_sequences(tmp_path / "rows.parquet"), x)


def test_files_from_before_these_columns_still_load(tmp_path: Path):
    import pyarrow.parquet as pq

    x = make(30, 7)
    save_sequences(x, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert set(RECORDED) <= set(table.column_names)
    pq.write_table(table.drop_columns(list(RECORDED)), tmp_path / "rows.parquet")
    assert_equal(load_sequences(tmp_path / "rows.parquet"), without(x, *RECORDED))


def test_rows_are_taken_and_joined_with_what_was_recorded(tmp_path: Path):
    x, y = make(20, 7), make(10, 4, seed=1)
    both = Sequences.concatenate([y, x])
    assert both.ids.shape == both.token_log_prob.shape == (30, 7)
    assert_equal(both.take(slice(0, 10)), y)
    assert_equal(both.take(np.arange(10, 30)), x)
    save_sequences(both, tmp_path / "rows.parquet")
    assert_equal(load_sequences(tmp_path / "rows.parquet").take(slice(0, 10)), y)
    short = x.take(np.flatnonzero(x.lengths <= 3))
    assert short.token_log_prob.shape == short.ids.shape
    assert short.ids.shape[1] <= 3


def test_a_column_that_one_part_lacks_is_dropped():
    x, y = make(20, 7), without(make(10, 4, seed=1), "near_edge")
    both = Sequences.concatenate([x, y])
    assert both.near_edge is None
    assert both.token_log_prob is not None


@pytest.mark.parametrize("name", RECORDED)
def test_a_column_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        replace(make(20, 7), **{name: getattr(make(19, 7), name)})
