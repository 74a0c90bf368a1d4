"""One Ray actor an owner passes the contract of every cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import contracts.cohort
import pytest
import toys
from contracts.cohort import BackgroundContract, CohortContract
from ray import cloudpickle

from fedray.actors.cohort import RayCohort
from fedray.config import Experiment
from fedray.owners import Owner
from fedray.protocols import Cohort

cloudpickle.register_pickle_by_value(toys)
cloudpickle.register_pickle_by_value(contracts.cohort)


class TestRayCohort(CohortContract, BackgroundContract):
    """The contract, with real actors."""

    @pytest.fixture
    def opens_cohort(self, ray_dir: Path) -> Iterator[Callable[[Mapping[str, Callable[[], Owner]]], Cohort]]:
        opened: list[RayCohort] = []

        def opens(openers: Mapping[str, Callable[[], Owner]]) -> Cohort:
            opened.append(RayCohort(openers, Experiment(), cpus=2.0))
            return opened[-1]

        yield opens
        for cohort in opened:
            cohort.close()
