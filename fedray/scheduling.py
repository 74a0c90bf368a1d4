"""Which rounds an experiment has: those that wait for a cohort, or those that wait for nobody."""

from __future__ import annotations

from fedray.buffered import federate_buffered
from fedray.config import Experiment
from fedray.config.schedule import Buffered
from fedray.rounds import Rounds, federate


def rounds_of(experiment: Experiment, synchronous: Rounds = federate) -> Rounds:
    """What runs the experiment's rounds.

    Args:
        experiment: what is run.
        synchronous: what runs rounds that wait for a cohort.
    """
    return federate_buffered if isinstance(experiment.schedule, Buffered) else synchronous
