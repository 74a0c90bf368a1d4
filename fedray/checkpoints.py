"""A run's checkpoints: the state after each round and the round's record, in one folder of any file system.

A checkpoint is whole or not there. It is written before its round's record is given to anyone and, under differential
privacy, before the next round begins: so a round that is done again was never released. The folder holds
``round-000012.safetensors`` and so on; what may be deleted is the rule's to say, and the newest never is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fedray.config import Experiment
from fedray.config.privacy import NoPrivacy, OwnerLevel
from fedray.errors import RecordsError, RunDirectoryError
from fedray.federation import ServerState
from fedray.folders import Folder
from fedray.records import record_from_json, record_to_json
from fedray.states import pack, unpack
from fedray.values import RoundRecord

FOLDER = "checkpoints"
_NAME = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Where a run goes on.

    Attributes:
        state: the state after a round.
        record: the round's record.
    """

    state: ServerState
    record: RoundRecord


class CheckpointStore:
    """Writes one run's checkpoints, and finds the newest.

    Attributes:
        rounds: those that have a checkpoint.

    Args:
        experiment: says which are kept, and where if not in the run directory.
        directory: the run directory.

    Raises:
        ConfigError: the place cannot be written to.
    """

    def __init__(self, experiment: Experiment, directory: Path) -> None:
        self._rule = experiment.checkpoints
        self._metric, self._is_more_better = str(experiment.search.metric), experiment.search.mode == "max"
        self._is_durable = not isinstance(experiment.privacy, NoPrivacy)
        self._is_newest_only = isinstance(experiment.privacy, OwnerLevel)
        self._folder = Folder(self._rule.path or str((directory / FOLDER).absolute()))
        self.rounds = {int(match[1]) for name in self._folder.names() if (match := _NAME.fullmatch(name))}
        self._scores: dict[int, float] = {}

    def write(self, state: ServerState, record: RoundRecord) -> None:
        """Keep the state after a round, then delete what no rule keeps.

        Raises:
            RunError: it cannot be written.
        """
        data = pack(state, record_to_json(record))
        self._folder.write(_name(state.round), data, is_durable=self._is_durable)
        self.rounds.add(state.round)
        self._scores[state.round] = self._score(record)
        for round in self.rounds - self._kept():
            self._folder.delete(_name(round))
            self.rounds.discard(round)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; None where there is none.

        Raises:
            RecordsError: the newest is damaged, and the run's privacy does not allow to go on from an older one; or all
                are.
        """
        rounds = sorted(self.rounds, reverse=True)
        for round in rounds:
            try:
                return self.read(round)
            except RecordsError:
                if self._is_newest_only or round == rounds[-1]:
                    raise
        return None

    def require_empty(self) -> None:
        """Refuse to mix two runs' checkpoints.

        Raises:
            RunDirectoryError: the folder holds some.
        """
        if self.rounds:
            raise RunDirectoryError(
                f"{self._folder} holds checkpoints of round {max(self.rounds)} already",
                "a folder of this run's own",
                "give checkpoints.path another folder, or go on with that run by --resume",
            )

    def require_repeatable(self, recorded: int, done: int) -> None:
        """Refuse to do rounds again whose results were given out, where nobody is charged for them twice.

        Raises:
            RecordsError: the run's privacy does not allow it.
        """
        if self._is_newest_only:
            raise RecordsError(
                f"records of {recorded} rounds, but a checkpoint of round {done}",
                "the checkpoint of the last round on record: rounds of owner-level privacy are released once",
                "restore the newest checkpoint from a copy, or begin a new run",
            )

    def read(self, round: int) -> Checkpoint:
        """The checkpoint of a round.

        Raises:
            RecordsError: it is damaged, or not there.
        """
        try:
            state, note = unpack(self._folder.read(_name(round)))
            return Checkpoint(state, record_from_json(note))
        except (OSError, RecordsError) as error:
            raise RecordsError(
                f"{self._folder}/{_name(round)} cannot be read: {str(error).splitlines()[0]}",
                "a whole checkpoint",
                "restore it from a copy; noise that nobody accounted for would be released from an older one"
                if self._is_newest_only
                else "restore it from a copy, or take another round's",
            ) from error

    def _kept(self) -> set[int]:
        rounds = sorted(self.rounds)
        kept = set(rounds[-self._rule.last :])
        if self._rule.every:
            kept |= {round for round in rounds if round % self._rule.every == 0}
        if self._rule.best:
            kept |= self._best(rounds)
        return kept

    def _best(self, rounds: list[int]) -> set[int]:
        """The first of the best rounds, where any was evaluated."""
        for round in set(rounds) - set(self._scores):
            self._scores[round] = self._score(self.read(round).record)
        scored = [round for round in rounds if not math.isnan(self._scores[round])]
        sign = 1 if self._is_more_better else -1
        return {max(scored, key=lambda round: (sign * self._scores[round], -round))} if scored else set()

    def _score(self, record: RoundRecord) -> float:
        return record.evaluation.get(self._metric, math.nan)


def _name(round: int) -> str:
    return f"round-{round:06d}.safetensors"
