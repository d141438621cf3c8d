"""What mixtures take for numbers, and what they refuse in one line."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from scipy import stats

import hydrometer as hm
from hydrometer.core.errors import DataError, InputError
from hydrometer.models.mixture.real_arrays import RELATIVE_ASYMMETRY
from hydrometer.models.mixture.spec import MixtureTruth

AT = np.array([[0.3, -0.2], [1.0, 2.0]])
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
SIZES = np.diag(np.arange(1.0, 7.0))


def one(covariance: Any) -> hm.Mixture:
    return hm.Mixture([1.0], np.zeros((1, len(covariance))), [covariance])


# symmetric up to rounding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "covariance",
    [
        TURN @ SIZES @ TURN.T,
        (TURN.astype(np.float32) @ SIZES.astype(np.float32) @ TURN.T.astype(np.float32)),
        np.linalg.inv(np.linalg.inv(TURN @ (1e4 * SIZES) @ TURN.T)),
        np.eye(6) + np.triu(np.full((6, 6), 1e-17), 1),
        np.diag([1e6, 1e6, 1.0, 1.0, 1.0, 1.0]) + np.triu(np.full((6, 6), 1e-3), 1),
    ],
    ids=["float64", "float32", "inverted twice", "1e-17", "far beside small"],
)
def test_rounding_leaves_the_density_of_the_symmetric_part(covariance: Any) -> None:
    assert not (covariance == covariance.T).all()
    half = (covariance.astype(float) + covariance.T.astype(float)) / 2
    x = np.random.default_rng(1).normal(size=(5, 6))
    right = stats.multivariate_normal(np.zeros(6), half).logpdf(x)
    made = one(covariance)
    np.testing.assert_allclose(made.log_prob(x), right, rtol=1e-10)
    np.testing.assert_array_equal(made.covariances[0], made.covariances[0].T)
    np.testing.assert_allclose(made.component_log_prob(x)[0], right, rtol=1e-10)
    tied = hm.Mixture([0.5, 0.5], np.zeros((2, 6)), covariance, covariance_type="tied")
    np.testing.assert_allclose(tied.log_prob(x), right, rtol=1e-10)


def test_a_symmetric_covariance_is_kept_to_the_bit() -> None:
    exact = np.array([[2.0, 1 / 3], [1 / 3, 1.0]])
    np.testing.assert_array_equal(one(exact).covariances[0], exact)


@pytest.mark.parametrize("off", [0.5, 1e-3, 3 * RELATIVE_ASYMMETRY])
def test_more_than_rounding_is_refused(off: float) -> None:
    skew = np.array([[1.0, off], [0.0, 1.0]])
    with pytest.raises(InputError, match="must be symmetric"):
        one(skew)
    with pytest.raises(InputError, match="must be symmetric"):
        hm.Mixture([1.0], [[0.0, 0.0]], skew, covariance_type="tied")
    with pytest.raises(InputError, match="precisions_init must be symmetric"):
        hm.fit_mixture(AT, 1, precisions_init=[skew])
    with pytest.raises(InputError, match="must be symmetric"):
        MixtureTruth(means=((0.0, 0.0),), covariances=tuple(map(tuple, skew)), covariance_type="tied")


def test_one_of_many_is_refused_by_its_own_size() -> None:
    skew = np.array([[1e-6, 1e-7], [0.0, 1e-6]])
    with pytest.raises(InputError, match="must be symmetric"):
        hm.Mixture([0.5, 0.5], np.zeros((2, 2)), [1e6 * np.eye(2), skew])


def test_a_start_is_taken_for_its_symmetric_part() -> None:
    x = hm.Mixture([1.0], [[0.0, 1.0]], [np.eye(2)]).sample(200).x
    rounded = np.array([[2.0, 0.5 + 1e-9], [0.5 - 1e-9, 1.0]])
    even = np.array([[2.0, 0.5], [0.5, 1.0]])
    a, b = (hm.fit_mixture(x, 2, precisions_init=[p, p], max_iter=3).model for p in (rounded, even))
    np.testing.assert_allclose(a.means, b.means, rtol=1e-12)


def test_a_fitted_gaussian_mixture_with_rounding_comes_over() -> None:
    mixture = pytest.importorskip("sklearn.mixture")
    x = np.random.default_rng(0).normal(size=(300, 2))
    fitted = mixture.GaussianMixture(2, random_state=0).fit(x)
    fitted.covariances_ = fitted.covariances_ + np.array([[0.0, 1e-12], [0.0, 0.0]])
    np.testing.assert_allclose(hm.Mixture.from_sklearn(fitted).log_prob(x), fitted.score_samples(x), rtol=1e-9)
    with pytest.raises(InputError, match="no fitted GaussianMixture"):
        hm.Mixture.from_sklearn(mixture.GaussianMixture(2))
    fitted.means_ = np.ma.array(fitted.means_, mask=[[0, 0], [0, 1]])
    with pytest.raises(InputError, match="masked"):
        hm.Mixture.from_sklearn(fitted)


# plain real numbers -------------------------------------------------------------------------------------------------

MASKED = np.ma.array([[1.0, 2.0], [3.0, np.nan]], mask=[[0, 0], [0, 1]])
REFUSED: dict[str, Any] = {
    "masked": MASKED,
    "masked rows in a list": [MASKED[0], MASKED[1]],
    "a masked element": [[1.0, 2.0], [3.0, np.ma.masked]],
    "complex": np.array([[1 + 0j, 2], [3, 4]]),
    "complex in lists": [[1, 2], [3, 4j]],
    "text": np.array([["a", "b"], ["c", "d"]]),
    "numbers as text": [["1", "2"], ["3", "4"]],
    "text of any length": np.array([["1", "2"], ["3", "4"]], dtype=np.dtypes.StringDType()),
    "bytes": np.array([[b"1", b"2"], [b"3", b"4"]]),
    "objects": np.array([[1.0, None], [2.0, 3.0]], dtype=object),
    "numbers as objects": np.array([[1.0, Fraction(1, 2)], [2.0, 3.0]], dtype=object),
    "dates": np.array([["2020-01-01", "2020-01-02"]] * 2, dtype="datetime64[D]"),
    "Python's dates": [[datetime.date(2020, 1, 1), 2.0], [1.0, 2.0]],
    "time spans": np.array([[1, 2], [3, 4]], dtype="timedelta64[s]"),
    "records": np.array([(1.0, 2.0), (3.0, 4.0)], dtype=[("x", float), ("y", float)]),
    "huge integers": [[10**400, 1], [2, 3]],
    "unequal rows": [[1.0, 2.0], [3.0]],
    "sparse": scipy.sparse.csr_array(np.eye(2)),
    "a sparse matrix": scipy.sparse.coo_matrix(np.eye(2)),
    "a table with text": pa.table({"x": [1.0, 2.0], "y": ["a", "b"]}),
    "nothing": None,
    "a dictionary": {"x": [1.0, 2.0]},
    "NaN": [[1.0, np.nan], [3.0, 4.0]],
}
TRUTH = hm.Mixture([1.0], [[0.0, 0.0]], [np.eye(2)])
PLACES: dict[str, Callable[[Any], object]] = {
    "fit": lambda x: hm.fit_mixture(x, 1),
    "log_prob": TRUTH.log_prob,
    "component_log_prob": TRUTH.component_log_prob,
    "points": lambda x: TRUTH.log_prob(hm.Points(x, np.zeros(2))),
    "score_beside": lambda x: TRUTH.score_beside(hm.Points(x, np.zeros(2)), TRUTH),
    "means": lambda x: hm.Mixture([0.5, 0.5], x, [1.0, 1.0], covariance_type="spherical"),
    "covariances": lambda x: hm.Mixture([0.5, 0.5], np.zeros((2, 2)), x, covariance_type="diag"),
    "means_init": lambda x: hm.fit_mixture(AT, 2, means_init=x) if x is not None else hm.fit_mixture(x, 2),
    "precisions_init": lambda x: (
        hm.fit_mixture(AT, 2, covariance_type="diag", precisions_init=x) if x is not None else hm.fit_mixture(x, 2)
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_number_is_refused_in_one_line(kind: str, place: str) -> None:
    with pytest.raises(InputError) as found:
        PLACES[place](REFUSED[kind])
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("kind", ["masked", "text", "complex", "objects"])
def test_weights_are_held_to_the_same(kind: str) -> None:
    bad = np.ma.array([0.5, 0.5], mask=[0, 1]) if kind == "masked" else REFUSED[kind][0]
    for do in (
        lambda: hm.Mixture(bad, [[0.0], [1.0]], [1.0, 1.0], covariance_type="spherical"),
        lambda: hm.fit_mixture(AT, 1, sample_weight=bad),
        lambda: hm.fit_mixture(AT, 2, weights_init=bad),
    ):
        with pytest.raises(InputError) as found:
            do()
        assert "\n" not in str(found.value)


def test_a_batch_of_masked_data_sets_keeps_its_masks() -> None:
    """numpy.asarray of a list of masked arrays forgets what is masked."""
    with pytest.raises(DataError, match="masked"):
        hm.fit_mixture([np.ma.array([[1.0], [2.0]]), np.ma.array([[1.0], [1e9]], mask=[[0], [1]])], 1)


def test_an_array_that_masks_nothing_is_taken() -> None:
    assert hm.fit_mixture(np.ma.array([[1.0], [2.0]], mask=False), 1).model.means[0, 0] == 1.5


TAKEN: dict[str, Any] = {
    "lists": AT.tolist(),
    "float16": AT.astype(np.float16),
    "extended": AT.astype(np.longdouble),
    "big-endian": AT.astype(">f8"),
    "Fortran order": np.asfortranarray(AT),
    "every other row": np.repeat(AT, 2, axis=0)[::2],
    "read-only": np.broadcast_to(AT, (2, 2)),
    "a table": pa.table({"x": AT[:, 0], "y": AT[:, 1]}),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_plain_numbers_of_any_width_and_layout_are_taken(kind: str) -> None:
    rough = 1e-3 if kind == "float16" else 0.0
    np.testing.assert_allclose(TRUTH.log_prob(TAKEN[kind]), TRUTH.log_prob(AT), rtol=rough)
    np.testing.assert_allclose(hm.fit_mixture(TAKEN[kind], 1).model.means[0], AT.mean(axis=0), rtol=rough + 1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.bool_])
def test_whole_numbers_do_not_overflow(dtype: Any) -> None:
    x = np.array([[0, 1], [1, 1], [100, 120]]).astype(dtype)
    np.testing.assert_allclose(hm.fit_mixture(x, 1).model.means[0], x.astype(float).mean(axis=0))
    np.testing.assert_array_equal(TRUTH.log_prob(x), TRUTH.log_prob(x.astype(float)))


def test_tensors_are_taken_unless_numpy_cannot_read_them() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(TRUTH.log_prob(torch.tensor(AT)), TRUTH.log_prob(AT))
    with pytest.raises(DataError, match="requires grad"):
        TRUTH.log_prob(torch.tensor(AT, requires_grad=True))
    with pytest.raises(DataError, match="array of numbers"):
        TRUTH.log_prob(torch.tensor(AT, dtype=torch.bfloat16))


def test_infinite_points_have_no_density() -> None:
    full = one(np.array([[1.0, 0.3], [0.3, 1.0]]))
    x = np.array([[np.inf, 0.0], [np.inf, np.inf], [-np.inf, np.inf], [0.0, 0.0]])
    np.testing.assert_array_equal(np.isneginf(full.log_prob(x)), [True, True, True, False])


def test_an_unknown_covariance_type_is_refused() -> None:
    with pytest.raises(InputError, match="covariance_type must be"):
        hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="round")  # pyright: ignore[reportArgumentType]


def test_a_student_of_one_component_is_not_decoded_unless_it_is_asked_for() -> None:
    from hydrometer.models.families import parse_run_spec
    from hydrometer.models.mixture.doctor import examine
    from hydrometer.run.preflight.design import examine_design

    def chain(k: int, **more: object) -> dict[str, object]:
        return {
            "family": "mixture", "truth": {"means": [[0, 0], [3, 0]], "covariances": 1.0},
            "teacher": {"n_components": 2}, "student": {"n_components": k},
            "selectivity": [{"weight_power": 1}, {"weight_power": 3}], **more,
        }  # fmt: skip

    def found(k: int, **more: object) -> tuple[int, list[str], list[str]]:
        spec = parse_run_spec({"name": "x", "seeds": 3, "chains": {"m": chain(k, **more)}}, "x")
        one = spec.chains["m"]
        design = [f"{f.severity} {f.code}" for f in examine_design(spec, "m")]
        return len(one.controls), [f.code for f in examine(one)], design

    assert found(1) == (0, [], ["note no-control"])
    assert found(2) == (1, [], [])
    assert found(1, decoding=[{"weight_power": 3}]) == (1, ["decoding-idle"], [])
    assert found(1, grid={"student": [1, 2]})[0] == 1  # each point for itself
