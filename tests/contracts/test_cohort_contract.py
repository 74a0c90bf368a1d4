"""The cohorts of this process keep the Cohort contract; those of Ray actors are tested in ``tests/ray``."""

from __future__ import annotations

from functools import partial

import pytest
from contracts.cohort import BackgroundContract, CohortContract, OpensCohort, SinglePools

from fedray.pools import InProcessCohort, InProcessPool


class TestInProcessCohort(CohortContract, BackgroundContract):
    @pytest.fixture
    def opens_cohort(self) -> OpensCohort:
        return InProcessCohort


class TestInProcessPool(CohortContract):
    """With updates that travel one by one, as the contract looks at them; ``test_pools`` has those with an adder."""

    @pytest.fixture
    def opens_cohort(self) -> OpensCohort:
        return partial(InProcessPool, makes=SinglePools())
