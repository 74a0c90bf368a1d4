"""A run's sums done again from its records alone: they say whose updates are in each; and its owners' ledgers.

``wrong_rounds`` runs the experiment again in this process, unprotected, with these owners and no others, and compares
parameters bit by bit.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedray.build import open_federation
from fedray.config import Experiment, replaced
from fedray.pooling import cohort_here
from fedray.protocols import Cohort
from fedray.rounds import federate
from fedray.values import Absent, Assignment, Part, Population, RoundRecord, Sealed, Subtotal, Tally, Vector


def charges(ledger: Path) -> Counter[int]:
    """Rounds that stand in an owner's ledger, and how often each is charged."""
    entries = [json.loads(line)["entry"] for line in ledger.read_text().splitlines()]
    return Counter(entry["round"] for entry in entries if entry["kind"] == "charge")


def wrong_rounds(experiment: Experiment, records: Sequence[RoundRecord]) -> list[int]:
    """Rounds after which the model is not the one that the sums of the owners on record give."""
    unprotected = replaced(experiment, {"protection": _unprotected(experiment), "evaluation.every": experiment.rounds})
    with tempfile.TemporaryDirectory() as folder:
        federation = open_federation(unprotected, cohort_here(unprotected), Path(folder))
        replayed = replace(federation, cohort=Replayed(federation.cohort, records))
        models = (record.parameters_sha256 for _, record in federate(replayed))
        return [
            record.round for record, model in zip(records, models, strict=False) if record.parameters_sha256 != model
        ]


def _unprotected(experiment: Experiment) -> Mapping[str, object]:
    section = experiment.protection
    return {"name": "plain", "precision": section.precision, "clip": section.clip}


class Replayed:
    """Owners in this process, of whom only those answer who are on record as being in a round's sum.

    Args:
        cohort: all of them.
        records: of all rounds.
    """

    def __init__(self, cohort: Cohort, records: Iterable[RoundRecord]) -> None:
        self._cohort = cohort
        self._present = {record.round: _in_the_sum(record) for record in records}
        self.at_once, self.notes = cohort.at_once, cohort.notes

    @property
    def population(self) -> Population:
        return self._cohort.population

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterator[Sealed | Subtotal | Absent]:
        there = [one for one in assignments if one.owner in self._present.get(one.plan.round, ())]
        yield from (
            Absent(one.owner, one.plan.round, "absent", "not on record") for one in assignments if one not in there
        )
        yield from self._cohort.train(vector, there, patience_s)

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        return self._cohort.ask(round, messages)

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        return self._cohort.evaluate(vector, part, owners)

    def work(self) -> Mapping[str, float]:
        return self._cohort.work()

    def close(self) -> None:
        self._cohort.close()


def _in_the_sum(record: RoundRecord) -> set[str]:
    return {owner.name for owner in record.owners if owner.outcome in ("update", "partial")}
