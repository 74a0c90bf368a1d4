"""Parties on which the tests of shared tensors run: plain numbers, and true shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain_parties import PlainParties

from fedray.mpc.engine import Parties
from fedray.mpc.local import LocalParties


@pytest.fixture(scope="module", params=["plain", "shares"])
def parties(request: pytest.FixtureRequest) -> Iterator[Parties]:
    if request.param == "plain":
        yield PlainParties()
        return
    with LocalParties() as local:
        yield local
