"""An answer that is lost may have been trained for and sent: what is reported is never less than what was spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from fedray.build import open_federation
from fedray.config import Experiment
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile
from fedray.rounds import federate
from fedray.values import Absent, Assignment, Sealed, Vector


class Losing(InProcessCohort):
    """Trains as it should, and loses what comes back of some rounds."""

    def __init__(self, openers: Mapping[str, Callable[[], Owner]], rounds: set[int]) -> None:
        super().__init__(openers)
        self._lost_rounds = rounds

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        for answer in super().train(vector, assignments):
            lost = answer.round in self._lost_rounds
            yield Absent(answer.owner, answer.round, "absent", "lost on the way") if lost else answer


@pytest.mark.parametrize("privacy", [{"epsilon": 3.0}, {"noise_multiplier": 1.2}])
@pytest.mark.parametrize("lost", [set(), {2}, {4}, {1, 3, 4}])
def test_the_record_never_says_less_than_the_accounts(
    privacy: dict[str, float], lost: set[int], tmp_path: Path
) -> None:
    experiment = Experiment(
        rounds=4,
        data={"name": "digits", "owners": 3},
        model="logistic",
        privacy={"name": "example", **privacy},
    )
    federation = open_federation(experiment, lambda openers: Losing(openers, lost), tmp_path)
    for _, record in federate(federation):
        accounts = {
            owner.name: Ledger(LedgerFile(tmp_path / owner.name / "ledger.jsonl"), owner.name)
            .spent("example", 1e-5)
            .epsilon
            for owner in record.owners
        }
        assert all(owner.epsilon >= accounts[owner.name] - 1e-9 for owner in record.owners)
        if record.round not in lost and not lost:
            assert all(owner.epsilon == pytest.approx(accounts[owner.name]) for owner in record.owners)


def test_a_private_run_that_asked_nobody_has_spent_nothing_which_is_not_no_privacy(tmp_path: Path) -> None:
    experiment = Experiment(
        rounds=1,
        data={"name": "digits", "owners": 3},
        model="logistic",
        cohort={"name": "poisson", "rate": 1e-9},
        privacy={"name": "example", "epsilon": 1.0},
    )
    ((_, record),) = federate(open_federation(experiment, InProcessCohort, tmp_path))
    assert record.epsilon == 0.0
