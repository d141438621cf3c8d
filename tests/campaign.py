"""What `make test` leaves to `make test-all`."""

from __future__ import annotations

from typing import Any

import pytest


def kinds(*always: str, campaign: str = "") -> list[Any]:
    """Parameters of a test: names that it always runs for, and those, between spaces, of `make test-all` alone."""
    return [*always, *(pytest.param(name, marks=pytest.mark.campaign) for name in campaign.split())]
