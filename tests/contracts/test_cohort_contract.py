"""The cohort of this process keeps the Cohort contract; the one of Ray actors is tested in ``tests/ray``."""

from __future__ import annotations

import pytest
from contracts.cohort import CohortContract, OpensCohort

from fedray.pools import InProcessCohort


class TestInProcessCohort(CohortContract):
    @pytest.fixture
    def opens_cohort(self) -> OpensCohort:
        return InProcessCohort
