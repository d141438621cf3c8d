import pytest

from hydrometer.core.errors import StoreError
from hydrometer.core.findings import Finding, fatal, note, warning


@pytest.mark.parametrize("make", [fatal, warning, note])
def test_a_finding_survives_json_and_stays_one_line(make: object) -> None:
    found = make("a-code", "what\n\x1b[31m", "why", "fix")  # type: ignore[operator]
    body = found.to_json()
    assert "\n" not in body["what"]
    assert "\x1b" not in body["what"]
    assert Finding.from_json(body) == Finding("a-code", found.severity, body["what"], "why", "fix")
    assert found.is_fatal == (make is fatal)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"code": "x"},
        {"code": "x", "severity": "bad", "what": "", "why": "", "fix": "", "chain": None},
        {"code": 1, "severity": "note", "what": "", "why": "", "fix": "", "chain": None},
        {"code": "x", "severity": "note", "what": "", "why": "", "fix": "", "chain": 3},
    ],
)
def test_what_is_no_finding_is_refused(value: object) -> None:
    with pytest.raises(StoreError):
        Finding.from_json(value)
