"""Compare experiments with Ray Tune: every trial is a federation inside its own placement group.

The trial's process is the server; its owners are actors in the group's other bundles. So trials hold all that they
need or wait, and can neither deadlock nor starve. Every round is reported and checkpointed: a driver that was killed
goes on where it was. Under random stopping the number of trials is drawn once; Tune keeps it with its own state.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.tune import Checkpoint

from fedray import data
from fedray.actors.resources import owner_cpus, owner_demand, pool_demands, require
from fedray.actors.session import ray_cohort, ray_key_holder, ray_session
from fedray.build import check, open_federation
from fedray.config import Experiment, Placement
from fedray.config.cluster import Pooled
from fedray.config.learning import EveryOwner
from fedray.config.loading import Raw, as_raw, override, plain, read_yaml
from fedray.config.privacy import ExamplePrivacy, NoPrivacy, OwnerPrivacy
from fedray.config.search import Asha, Search
from fedray.config.search import RandomStopping as RandomDraws
from fedray.config.space import Range, Space, separate
from fedray.errors import ConfigError, RunDirectoryError, RunError
from fedray.privacy.tuning import RandomStopping
from fedray.records import PARQUET, RunRecords, Status, find_runs, header, read_run, write_parquet
from fedray.rounds import federate
from fedray.run_directory import new_directory
from fedray.states import load_state, save_state
from fedray.values import RoundRecord

STATE = "state.safetensors"
TRIALS = "trials"
LEDGERS = "ledgers"
"""Folder of a comparison: the ledgers, over all trials, of owners that have opened none on their machine."""
_TUNE = "tune"
_SPACE = "compare.yaml"
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Tune's switches: our own progress and records, Ctrl-C ends a comparison, and not every round is evaluated."""
_SERVER_CPUS = 0.01
"""Never nothing: Ray drops an empty head bundle, and then mistakes the first owner's node for the server's."""
_COSTLY = ("privacy", "rounds", "cohort", "data", "evaluation", "metrics", "protection")
"""Settings that what a trial costs hangs on, with those of ``_costly``."""
_OWNERS_CPUS = 1.0 - _SERVER_CPUS
"""What a trial's owners share where the experiment says ``auto``: one trial a processor."""

Watch = Callable[[str, Mapping[str, Any], Mapping[str, Any] | None], None]
"""Called with a trial's name, its settings and its newest round's figures; these are None when the trial has ended."""


def _nobody(trial: str, settings: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
    """Watches nothing."""


_watching: ContextVar[Watch] = ContextVar("watching", default=_nobody)


@dataclass(frozen=True)
class Comparison:
    """What a comparison left.

    Attributes:
        directory: records of every trial under ``trials/``.
        runs: the records, in the order of the trials' names.
        n_failed: trials that ended in an error.
    """

    directory: Path
    runs: tuple[RunRecords, ...]
    n_failed: int


def compare(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    space: Mapping[str, Any] | None = None,
    directory: str | Path | None = None,
    *,
    resume: bool = False,
    address: str | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Run the experiment at every point of a search space.

    Args:
        experiment: an experiment, a mapping or a YAML file with lists or ranges in it.
        space: dotted keys to lists or ranges, e.g. ``{"strategy": ["fedavg", "fedprox"], "seed": [0, 1]}``.
        directory: a new directory for the records; ``runs/NAME-TIME`` when left out.
        resume: go on with the comparison in ``directory``, after its driver was killed.
        address: address of a Ray cluster; this machine when left out.
        watch: called at every round of every trial.

    Raises:
        ConfigError, DataError, ModelError, ResourcesError: found before any trial starts.
        RunDirectoryError: the directory exists, or there is nothing to resume.
        RunError: every trial failed, or random stopping drew none.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    found = separate(override(_raw(experiment), space or {}))
    experiments = found.experiments()
    if experiments[0].search.samples > 1 and not found.ranges:
        raise ConfigError(
            f"search.samples is {experiments[0].search.samples}, but no setting has a range",
            "a range such as {uniform: [0, 1]} to draw from",
            "vary seed: [0, 1, ...] for repeats: the same trial twice tells nothing, and spends privacy twice",
        )
    if isinstance(experiments[0].search.draws, RandomDraws):
        _require_alike(found, experiments[0])
    for point in experiments:
        check(point)
    target = _resumed(directory) if resume else new_directory(directory, experiments[0].name)
    with ExitStack() as stack:
        stack.enter_context(ray_session(address))
        for point in experiments:
            names = data.owner_names(point.data)
            require(point, names, _OWNERS_CPUS)
        tuner = _restored(target, found) if resume else _tuner(target, found, experiments[0])
        if not resume:
            (target / _SPACE).write_text(yaml.safe_dump(plain(_described(found)), sort_keys=False))
        token = _watching.set(watch or _nobody)
        stack.callback(_watching.reset, token)
        results = tuner.fit()
        return _collected(target, results)


def _require_alike(space: Space, example: Experiment) -> None:
    """What random stopping takes for granted: trials of one cost, judged by what that cost covers.

    Raises:
        ConfigError: trials would differ in their cost, or tell more than it covers.
    """
    privacy = example.privacy
    costly = [key for key in (*space.grids, *space.ranges) if any(_touches(key, one) for one in _costly(example))]
    if isinstance(privacy, NoPrivacy) or costly:
        raise ConfigError(
            "search.draws random_stopping with " + (", ".join(costly) + " varied" if costly else "privacy none"),
            "trials that all cost the same, under differential privacy",
            "fix these settings, or take search.draws: fixed",
        )
    if isinstance(privacy, ExamplePrivacy) and example.evaluation.noise_multiplier is None:
        raise ConfigError(
            "search.draws random_stopping with trials that are judged by owners' held-out rows without noise",
            "noised figures",
            "give evaluation.noise_multiplier",
        )


def _costly(example: Experiment) -> tuple[str, ...]:
    work = ("train.batch_size", "train.epochs", "train.steps")
    seed = () if isinstance(example.cohort, EveryOwner) else ("seed",)
    adds_noise_itself = isinstance(example.privacy, ExamplePrivacy | OwnerPrivacy)
    size = () if adds_noise_itself else ("model", "task")
    return (*_COSTLY, *work, *seed, *size)


def _touches(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other or lies inside it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def read_space(directory: str | Path) -> Raw:
    """The experiment with its lists and ranges, as a comparison's directory keeps it.

    Raises:
        RunDirectoryError: there is none.
    """
    path = Path(directory) / _SPACE
    if not path.is_file():
        raise RunDirectoryError(f"no comparison in {directory}", f"a directory with {_SPACE}", "check the path")
    return read_yaml(path)


def _raw(experiment: Experiment | Mapping[str, Any] | str | Path) -> Raw:
    if isinstance(experiment, Experiment):
        return as_raw(experiment)
    return dict(experiment) if isinstance(experiment, Mapping) else read_yaml(experiment)


def _described(space: Space) -> Raw:
    ranges = {key: {spread.kind: list(spread.values)} for key, spread in space.ranges.items()}
    grids = {key: list(values) for key, values in space.grids.items()}
    return override(space.base, {**grids, **ranges})


def _trial(config: dict[str, Any], *, space: Space, accounts: Path) -> None:
    """One federation, from its start or from the trial's last checkpoint."""
    experiment = space.at({key: _plain(value) for key, value in config.items()})
    checkpoint = tune.get_checkpoint()
    state, records = None, header(experiment)
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            state, records = load_state(Path(kept) / STATE), read_run(Path(kept))
    state_dir = accounts / tune.get_context().get_trial_id()
    opens_cohort = ray_cohort(experiment, cpus=_OWNERS_CPUS)
    federation = open_federation(
        experiment, opens_cohort, state_dir, ray_key_holder(experiment), ledgers=accounts.parent / LEDGERS
    )
    try:
        for after, record in federate(federation, state):
            records = replace(records, rounds=(*records.rounds, record))
            if record.round == experiment.rounds:
                records = replace(records, status="complete")
            if after.is_exhausted:
                records = replace(records, status="exhausted")
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / STATE, after)
                write_parquet(Path(folder) / PARQUET, records)
                tune.report(_reported(record), checkpoint=Checkpoint.from_directory(folder))
    finally:
        federation.cohort.close()


def _reported(record: RoundRecord) -> dict[str, Any]:
    """What schedulers and searchers see."""
    return {"round": record.round, "epsilon": record.epsilon, **record.evaluation}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _bundles(config: dict[str, Any], *, space: Space) -> tune.PlacementGroupFactory:
    """The trial's server and each of its owners, every one with its node's labels and resources, or its pools."""
    experiment = space.at({key: _plain(value) for key, value in config.items()})
    server = {"CPU": experiment.resources.server_cpus or _SERVER_CPUS}
    if isinstance(experiment.simulation, Pooled):
        return tune.PlacementGroupFactory([server, *pool_demands(experiment, _OWNERS_CPUS)])
    names = data.owner_names(experiment.data)
    share = owner_cpus(experiment, len(names), _OWNERS_CPUS)
    owners = [owner_demand(experiment, name, share) for name in names]
    labels = [dict(experiment.placement.get(name, Placement()).labels) for name in names]
    if any(labels):
        return tune.PlacementGroupFactory([server, *owners], bundle_label_selector=[{}, *labels])
    return tune.PlacementGroupFactory([server, *owners])


def _tuner(target: Path, space: Space, example: Experiment) -> tune.Tuner:
    search = example.search
    spread_out = tune.choice if isinstance(search.draws, RandomDraws) else tune.grid_search
    return tune.Tuner(
        _trainable(target, space),
        param_space={
            **{key: spread_out(list(values)) for key, values in space.grids.items()},
            **{key: _domain(spread) for key, spread in space.ranges.items()},
        },
        tune_config=tune.TuneConfig(
            metric=search.metric,
            mode=search.mode,
            num_samples=_samples(search),
            scheduler=_scheduler(search.stopping, example.rounds),
            search_alg=_searcher(space, example),
            max_concurrent_trials=search.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=_TUNE,
            storage_path=str(target.absolute()),
            verbose=0,
            callbacks=[_Watcher()],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )


def _samples(search: Search) -> int:
    """Draws at every point of the lists; under random stopping the number of trials.

    Raises:
        RunError: none was drawn.
    """
    if not isinstance(search.draws, RandomDraws):
        return search.samples
    drawn = RandomStopping(search.draws.distribution, search.draws.mean).draw()
    if drawn == 0:
        raise RunError(
            "a search of 0 trials, as Poisson's distribution may draw",
            "at least one",
            "begin anew, which counts as another search; geometric and logarithmic draw at least one",
        )
    return drawn


def _trainable(target: Path, space: Space) -> Any:
    trial = partial(_trial, space=space, accounts=target.absolute() / "accounts")
    return tune.with_resources(_named(trial), partial(_bundles, space=space))


def _named(trial: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def federation(config: dict[str, Any]) -> None:
        trial(config)

    return federation


def _restored(target: Path, space: Space) -> tune.Tuner:
    return tune.Tuner.restore(
        str(target.absolute() / _TUNE),
        trainable=_trainable(target, space),
        resume_unfinished=True,
        resume_errored=True,
    )


def _resumed(directory: str | Path | None) -> Path:
    if directory is None or not tune.Tuner.can_restore(str(Path(directory).absolute() / _TUNE)):
        raise RunDirectoryError(
            f"nothing to resume in {directory}",
            "the directory of a comparison that was cut off",
            "check the path",
        )
    return Path(directory)


def _domain(spread: Range) -> Any:
    if spread.kind == "choice":
        return tune.choice(list(spread.values))
    return getattr(tune, spread.kind)(*spread.values)


def _scheduler(stopping: Any, rounds: int) -> Any:
    if not isinstance(stopping, Asha):
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr="round",
        max_t=rounds,
        grace_period=min(stopping.grace_rounds, rounds),
        reduction_factor=stopping.reduction_factor,
    )


def _searcher(space: Space, example: Experiment) -> Any:
    if example.search.algorithm == "random":
        return None
    if space.grids:
        raise ConfigError(
            f"search.algorithm optuna with lists for {', '.join(space.grids)}",
            "ranges only: a sampler does not try lists in full",
            "write {choice: [...]} for each list, or take algorithm: random",
        )
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=example.seed)
    except ImportError as error:
        raise ConfigError(
            "search.algorithm optuna, but optuna is not installed",
            "the extra",
            "pip install 'fedray[search]'",
        ) from error


class _Watcher(tune.Callback):
    """Hands each trial's newest round to whoever watches; holds nothing, so that Tune can save and restore it."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        _watching.get()(trial.trial_id, trial.config, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        _watching.get()(trial.trial_id, trial.config, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        _watching.get()(trial.trial_id, trial.config, None)


def _collected(target: Path, results: tune.ResultGrid) -> Comparison:
    """Copy the records of every trial out of its last checkpoint.

    Raises:
        RunError: no trial got through a round.
    """
    (target / TRIALS).mkdir(exist_ok=True)
    n_failed, first_error = 0, ""
    for result in (results[i] for i in range(len(results))):
        status: Status = "interrupted"
        if result.error is not None:
            n_failed, first_error = n_failed + 1, first_error or str(result.error)
            status = "failed"
        if result.checkpoint is None:
            continue
        with result.checkpoint.as_directory() as kept:
            run = read_run(Path(kept))
        ended = run if run.status in ("complete", "exhausted") else replace(run, status=status)
        write_parquet(target / TRIALS / f"{Path(result.path).name}.parquet", ended)
    if not any((target / TRIALS).iterdir()):
        reason = first_error.strip().rpartition("\n")[2] or "no round ended"
        raise RunError(
            f"all {n_failed} trials failed: {reason}", "trials that run", "try one with `fedray run --in-process`"
        )
    return Comparison(target, tuple(find_runs(target / TRIALS)), n_failed)
