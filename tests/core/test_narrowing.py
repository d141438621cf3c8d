"""Narrowing: lists become tuples at all depths, and a value of another type is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hydrometer.core.errors import InputError
from hydrometer.core.narrowing import as_tuple, as_tuples, is_list, is_record, of_type
from hydrometer.models.families import families
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences


def test_lists_become_tuples() -> None:
    assert as_tuple([1, [2]]) == (1, [2])
    assert as_tuples([1, [2, [3]]]) == (1, (2, (3,)))
    assert as_tuple("ab") == as_tuples("ab") == "ab"


def test_guards_tell_lists_from_tuples_and_dicts() -> None:
    assert [is_list(v) for v in ([], (), {}, "a", None)] == [True, False, False, False, False]
    assert [is_record(v) for v in ({}, [], None)] == [True, False, False]


def test_a_family_refuses_what_is_not_its_own() -> None:
    value = Points(np.zeros((1, 1)), np.zeros(1))
    assert of_type(Points, value) is value
    with pytest.raises(InputError, match=r"not a Sequences; got 'Points'"):
        of_type(Sequences, value)
    with pytest.raises(InputError, match=r"not a MarkovChain; got 'MixtureChain'"):
        families()["markov"].examine(families()["mixture"].chain_spec.model_construct())
