"""Every protection keeps the Protection contract."""

from __future__ import annotations

import pytest
from contracts.protection import N_VALUES, ProtectionContract

from fedray.protection.plain import PlainProtection
from fedray.protocols import Protection


class TestPlainProtection(ProtectionContract):
    @pytest.fixture
    def protection(self) -> Protection:
        return PlainProtection(N_VALUES)
