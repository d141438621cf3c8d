"""Tilted mixtures against quadrature, in one and two dimensions, and against draws."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import integrate

import hydrometer as hm
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.families import parse_run_spec
from hydrometer.models.mixture.law import Mixture

KINDS = ("full", "tied", "diag", "spherical")
REWARDS: dict[str, dict[str, Any]] = {
    "quadratic": {"center": [0.7, -0.4], "width": 0.8},
    "quadratic by axis": {"center": [0.7, -0.4], "width": [0.5, 2.0]},
    "bump": {"center": [0.3, 0.9], "width": 0.6, "height": 2.0},
    "bump by axis": {"center": [0.3, 0.9], "width": [0.4, 1.5], "height": 2.0},
}


def world(kind: str, d: int) -> Mixture:
    means = np.array([[-1.0, 0.5], [1.2, 0.1], [0.2, -1.0]])[:, :d]
    full = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]], [[0.4, 0.0], [0.0, 0.15]]])[:, :d, :d]
    diag = np.diagonal(full, axis1=1, axis2=2)
    cov = {"full": full, "tied": full[0], "diag": diag, "spherical": diag[:, 0]}[kind]
    return Mixture([0.5, 0.3, 0.2], means, cov, covariance_type=kind)  # pyright: ignore[reportArgumentType]


def tilted(name: str, d: int, strength: float, **others: Any) -> hm.Selectivity:
    form, fields = name.split(" ")[0], dict(REWARDS[name])
    for key in ("center", "width"):
        fields[key] = fields[key][:d] if isinstance(fields[key], list) else fields[key]
    return hm.Selectivity.model_validate({"tilt": {"reward": {form: fields}, "strength": strength}, **others})


def reward_of(s: hm.Selectivity, x: np.ndarray) -> np.ndarray:
    ((form, fields),) = s.to_json()["tilt"]["reward"].items()
    squares = np.square((x - fields["center"]) / np.asarray(fields["width"])).sum(axis=1)
    return -squares / 2 if form == "quadratic" else fields["height"] * np.exp(-squares / 2)


def expected_log_prob(law: Mixture, s: hm.Selectivity, points: np.ndarray) -> np.ndarray:
    """log p + r / b - log Z, with Z by adaptive quadrature."""
    b = s.to_json()["tilt"]["strength"]

    def whole(*x: float) -> float:
        at = np.array([x])
        return float(np.exp(law.log_prob(at) + reward_of(s, at) / b)[0])

    z, _ = integrate.nquad(whole, [(-9.0, 9.0)] * law.n_features, opts={"epsabs": 1e-13, "epsrel": 1e-11, "limit": 400})
    return law.log_prob(points) + reward_of(s, points) / b - math.log(z)


@pytest.mark.parametrize("strength", [0.25, 2.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REWARDS)
def test_on_a_line_the_tilt_is_that_of_quadrature(name: str, kind: str, strength: float) -> None:
    law, s = world(kind, 1), tilted(name, 1, strength)
    x = np.linspace(-4, 4, 41)[:, None]
    np.testing.assert_allclose(law.select(s).log_prob(x), expected_log_prob(law, s, x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REWARDS)
def test_in_a_plane_the_tilt_is_normalised_and_of_the_right_shape(name: str, kind: str) -> None:
    law, s = world(kind, 2), tilted(name, 2, 0.5)
    found = law.select(s)
    nodes, w = np.polynomial.legendre.leggauss(240)
    x = np.array(list(itertools.product(8 * nodes, 8 * nodes)))
    weight = 64 * np.outer(w, w).ravel()
    whole = law.log_prob(x) + reward_of(s, x) / 0.5
    z = float(weight @ np.exp(whole))
    np.testing.assert_allclose(found.log_prob(x), whole - math.log(z), rtol=1e-12, atol=1e-9)
    assert float(weight @ np.exp(found.log_prob(x))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rate", [1e-20, 0.3, 5.0, 30.0])
def test_a_bump_is_exact_to_rounding_up_to_its_bound(rate: float) -> None:
    """The density over p exp(r / b) is one number everywhere; what the sum leaves out would show at the centre."""
    law = world("diag", 2)
    bump = {"center": [0.3, 0.9], "width": 0.6, "height": rate}
    s = hm.Selectivity.model_validate({"tilt": {"reward": {"bump": bump}, "strength": 1}})
    x = np.array([0.3, 0.9]) + np.linspace(-3, 3, 25)[:, None] * [1.0, 0.4]
    ratio = law.select(s).log_prob(x) - law.log_prob(x) - reward_of(s, x)
    assert np.ptp(ratio) < 1e-12


def test_types_are_kept_where_they_hold() -> None:
    for kind, name, after in (
        ("spherical", "quadratic", "spherical"), ("spherical", "quadratic by axis", "diag"), ("tied", "bump", "full"),
        ("tied", "quadratic by axis", "tied"), ("diag", "bump", "diag"), ("spherical", "bump", "spherical"),
        ("full", "quadratic", "full"),
    ):  # fmt: skip
        assert world(kind, 2).select(tilted(name, 2, 0.5)).covariance_type == after
    assert world("diag", 2).select(tilted("quadratic", 2, 0.5)).n_components == 3


def test_the_weights_are_powered_first() -> None:
    law, s = world("full", 2), tilted("bump", 2, 0.5)
    x = law.sample(64, seed=Stream(0))
    both = law.select(tilted("bump", 2, 0.5, weight_power=3))
    np.testing.assert_array_equal(both.log_prob(x), law.select(hm.Selectivity(weight_power=3)).select(s).log_prob(x))
    assert np.abs(both.log_prob(x) - law.select(s).select(hm.Selectivity(weight_power=3)).log_prob(x)).max() > 0.01


@pytest.mark.parametrize("name", REWARDS)
def test_draws_reward_and_divergence_agree(name: str) -> None:
    """KL(q, p) = E_q r / b - log Z, and E_p[q / p] = 1: both over draws, within 4 standard errors."""
    law, s, n = world("full", 2), tilted(name, 2, 0.5), 40_000
    found = law.select(s)
    x, y = law.sample(n, seed=Stream(1)), found.sample(n, seed=Stream(2))
    ratio = np.exp(found.log_prob(x) - law.log_prob(x))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(n)
    r_p = np.exp(reward_of(s, x.x) / 0.5)
    z, z_error = r_p.mean(), r_p.std() / math.sqrt(n)
    gap = y.log_prob - law.log_prob(y) - reward_of(s, y.x) / 0.5  # -log Z at every row
    assert np.ptp(gap) < 1e-9
    assert abs(np.exp(-gap[0]) - z) < 4 * z_error
    under_p = reward_of(s, x.x) * ratio  # the same mean by draws of p
    under_q = reward_of(s, y.x)
    error = math.hypot(under_p.std(), under_q.std()) / math.sqrt(n)
    assert abs(under_p.mean() - under_q.mean()) < 4 * error


def test_a_selected_tilt_survives_its_folder(tmp_path: Any) -> None:
    from hydrometer.models.families import families

    family = families()["mixture"]
    found = world("tied", 2).select(tilted("bump", 2, 0.5))
    family.save_law(found, tmp_path)
    x = found.sample(16, seed=Stream(3))
    back = family.load_law(tmp_path, None, "float64")  # pyright: ignore[reportArgumentType]
    assert (back.log_prob(x) == found.log_prob(x)).all()


@pytest.mark.parametrize(
    ("tilt", "says"),
    [
        ({"reward": "length", "strength": 1}, "use quadratic or bump"),
        ({"reward": {"tokens": {1: 1}}, "strength": 1}, "use quadratic or bump"),
        ({"reward": {"quadratic": {"center": [0], "width": 1}}, "strength": 1}, "has 2 numbers"),
        ({"reward": {"bump": {"center": [0, 0], "width": 1, "height": 31}}, "strength": 1}, "at most 30 nats"),
        ({"reward": {"quadratic": {"center": [0, 0], "width": 1e-200}}, "strength": 1}, "float64 does not hold"),
        ({"reward": {"quadratic": {"center": [1e200, 0], "width": 1}}, "strength": 1e-10}, "float64 does not hold"),
    ],
)
def test_what_a_mixture_cannot_be_tilted_by_is_refused(tilt: dict[str, Any], says: str) -> None:
    s = hm.Selectivity.model_validate({"tilt": tilt})
    for kind in KINDS:
        with pytest.raises(InputError, match=says) as caught:
            world(kind, 2).select(s)
        assert "\n" not in str(caught.value)
    if "float64" in says:
        return
    body = {
        "family": "mixture", "truth": {"means": [[0, 0], [1, 1]], "covariances": 1}, "teacher": {"n_components": 2},
        "student": {"n_components": 2}, "selectivity": [{"weight_power": 1}],
    }  # fmt: skip
    for name in ("selectivity", "decoding", "target"):
        value = s.to_json() if name == "target" else [s.to_json()]
        with pytest.raises(SpecError, match=says) as refused:
            parse_run_spec({"name": "x", "chains": {"x": body | {name: value}}}, "here")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"), [({"loss": ["jsd"]}, "take mle, or a quadratic"), ({"exact": True}, "leave exact out")]
)
def test_what_would_take_hours_with_a_bump_is_refused(changes: dict[str, Any], says: str) -> None:
    body = {
        "family": "mixture", "truth": {"means": [[0, 0], [1, 1]], "covariances": 1}, "teacher": {"n_components": 2},
        "student": {"n_components": 2},
    }  # fmt: skip
    for name, refused in (("bump", True), ("quadratic", False)):
        chain = body | {"selectivity": [tilted(name, 2, 1.0).to_json()]} | changes
        spec = {"name": "x", "chains": {"x": chain}}
        if not refused:
            parse_run_spec(spec, "here")
            continue
        with pytest.raises(SpecError, match=says) as caught:
            parse_run_spec(spec, "here")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("narrow", [1e-3, 1e-6, 1e-8, 1e-12])
def test_a_narrow_reward_leaves_the_other_dimension_exact(narrow: float) -> None:
    """Against (S^-1 + D)^-1 in fractions; differences of large numbers would lose it."""
    law = Mixture([1.0], [[0.3, -0.2]], [[[1.0, 0.5], [0.5, 1.0]]])
    reward = {"quadratic": {"center": [0.7, -0.4], "width": [1.0, narrow]}}
    found = law.select(hm.Selectivity.model_validate({"tilt": {"reward": reward, "strength": 1}}))
    a, b, c = (Fraction(x) for x in (law.covariances[0, 0, 0], law.covariances[0, 0, 1], law.covariances[0, 1, 1]))
    det, tight = a * c - b * b, 1 / Fraction(narrow) ** 2
    p, q, r = c / det + 1, -b / det, a / det + tight  # the precision of what is left
    whole = p * r - q * q
    expected = [[r / whole, -q / whole], [-q / whole, p / whole]]
    np.testing.assert_allclose(found.covariances[0], [[float(x) for x in row] for row in expected], rtol=1e-12)
    off = [Fraction(x) - Fraction(y) for x, y in zip((0.7, -0.4), law.means[0].tolist(), strict=True)]
    moved = [row[0] * off[0] + row[1] * tight * off[1] for row in expected]
    right = [float(Fraction(m) + x) for m, x in zip(law.means[0].tolist(), moved, strict=True)]
    np.testing.assert_allclose(found.means[0], right, rtol=1e-12)
