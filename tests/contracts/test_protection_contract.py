"""Every protection keeps the Protection contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts.protection import OWNERS, SEED, ExactContract, Harness, Opens, plain_harness

from fedray.protection.fixed_point import FixedPoint
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedProtection

RUN = bytes(range(16))


class TestPlainProtection(ExactContract):
    @pytest.fixture
    def opens(self) -> Opens:
        return plain_harness


class MaskedContract(ExactContract):
    """Masks under some rules."""

    rules = Rules()
    is_enrolled = False

    @pytest.fixture
    def opens(self, tmp_path: Path) -> Opens:
        n_opened = 0

        def opens(fixed_point: FixedPoint, weight_bound: int) -> Harness:
            nonlocal n_opened
            n_opened += 1
            identities = {name: Identity() for name in OWNERS}
            enrolled = {name: one.public for name, one in identities.items()} if self.is_enrolled else {}
            sealers = {
                name: MaskedSealer(
                    name,
                    identities[name],
                    Trust(enrolled),
                    self.rules,
                    fixed_point,
                    SEED,
                    Journal(tmp_path / str(n_opened) / str(position)),
                )
                for position, name in enumerate(OWNERS)
            }
            protection = MaskedProtection(self.rules, fixed_point, weight_bound, RUN, enrolled)
            return Harness(sealers, protection, tolerance=1.0)

        return opens


class TestMaskedProtection(MaskedContract):
    """Against a server that is curious."""


class TestMaskedProtectionAgainstLies(MaskedContract):
    """Against a server that may lie too."""

    rules = Rules(server="may_lie")
    is_enrolled = True
