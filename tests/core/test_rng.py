import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hydrometer.core.rng import Stream, as_stream


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 40), st.integers(1, 9), st.integers(0, 39))
def test_rows_do_not_depend_on_where_a_block_begins(seed: int, start: int, n: int, width: int, cut: int) -> None:
    cut = min(cut, n)
    s = Stream(seed, ("a",))
    whole = s.uniforms(start, n, width)
    parts = np.concatenate([s.uniforms(start, cut, width), s.uniforms(start + cut, n - cut, width)])
    assert (whole == parts).all()


def test_uniforms_are_open_and_uniform() -> None:
    u = Stream(1, ("uniform",)).uniforms(0, 50_000, 2)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    # neighbouring rows and steps are uncorrelated within 5 standard errors
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 5 / np.sqrt(len(u))
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 5 / np.sqrt(len(u))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Stream(0), Stream(1)),
        (Stream(0, ("a", "b")), Stream(0, ("ab",))),
        (Stream(0, ("train",)), Stream(0, ("evaluate",))),
        (Stream(1, ("0",)), Stream(10, ())),
    ],
)
def test_streams_of_other_names_are_disjoint(one: Stream, other: Stream) -> None:
    a, b = one.uniforms(0, 200, 4).ravel(), other.uniforms(0, 200, 4).ravel()
    assert np.intersect1d(a, b).size == 0
    assert one.integer() != other.integer()


def test_seed_zero_is_a_seed() -> None:
    assert as_stream(0) == Stream(0)
    assert (Stream(0).uniforms(0, 3, 3) == Stream(0).uniforms(0, 3, 3)).all()


def test_layout_is_the_documented_one() -> None:
    """Row i of width w starts at counter i * ceil(w / 4) of Philox-4x64 under the path's key."""
    stream = Stream(7, ("evaluate", "truth"))
    digest = hashlib.blake2b(b'[7,["evaluate","truth"]]', digest_size=16, person=b"hydrometer.rng").digest()
    words = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(6 * 8)
    row = words.reshape(6, 8)[5, :7]  # width 7 occupies two counters of four words
    assert stream.uniforms(5, 1, 7)[0].tolist() == [((int(w) >> 12) + 0.5) / 2**52 for w in row]
