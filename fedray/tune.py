"""Compare experiments with Ray Tune: every trial is a federation inside its own placement group.

So trials hold all that they need or wait, and can neither deadlock nor starve. A driver that was killed goes on where
it was. Under random stopping the number of trials is drawn once; Tune keeps it with its own state.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from ray import tune

from fedray import data
from fedray.actors.resources import require
from fedray.actors.session import ray_session
from fedray.build import check
from fedray.config import Experiment
from fedray.config.learning import EveryOwner
from fedray.config.loading import Raw, as_raw, override, plain, read_yaml
from fedray.config.privacy import ExamplePrivacy, NoPrivacy, OwnerPrivacy
from fedray.config.search import Asha, Search
from fedray.config.search import RandomStopping as RandomDraws
from fedray.config.space import Range, Space, separate
from fedray.errors import ConfigError, RunDirectoryError, RunError
from fedray.folders import Folder
from fedray.privacy.tuning import RandomStopping
from fedray.records import RunRecords, Status, find_runs, read_run, write_parquet
from fedray.run_directory import new_directory
from fedray.trials import OWNERS_CPUS, storage_node, trainable

TRIALS = "trials"
_TUNE = "tune"
_SPACE = "compare.yaml"
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Tune's switches: our own progress and records, Ctrl-C ends a comparison, and not every round is evaluated."""
_COSTLY = ("privacy", "rounds", "cohort", "data", "evaluation", "metrics", "protection")
"""Settings that what a trial costs hangs on, with those of ``_costly``."""

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
            require(point, names, OWNERS_CPUS)
        tuner = _restored(target, found, experiments[0]) if resume else _tuner(target, found, experiments[0])
        if not resume:
            target.mkdir(parents=True, exist_ok=True)
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


def _tuner(target: Path, space: Space, example: Experiment) -> tune.Tuner:
    search = example.search
    spread_out = tune.choice if isinstance(search.draws, RandomDraws) else tune.grid_search
    return tune.Tuner(
        _trainable(target, space, example),
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
            storage_path=_storage(target, example),
            failure_config=tune.FailureConfig(max_failures=example.faults.server_restarts),
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


def _trainable(target: Path, space: Space, example: Experiment) -> Any:
    accounts = target.absolute() / "accounts"
    return trainable(space, accounts, secrets.token_hex(4), storage_node(example))


def _storage(target: Path, example: Experiment) -> str:
    """Where Tune keeps its trials: in a folder of this comparison's own.

    Raises:
        ConfigError: the place that the experiment names is none.
    """
    if example.checkpoints.path is None:
        return str(target.absolute())
    return f"{Folder(example.checkpoints.path)}/{target.absolute().name}"


def _restored(target: Path, space: Space, example: Experiment) -> tune.Tuner:
    kept = f"{_storage(target, example)}/{_TUNE}"
    if not tune.Tuner.can_restore(kept):
        raise RunDirectoryError(
            f"nothing to resume in {target}",
            "the directory of a comparison that was cut off",
            "check the path",
        )
    return tune.Tuner.restore(
        kept,
        trainable=_trainable(target, space, example),
        resume_unfinished=True,
        resume_errored=True,
    )


def _resumed(directory: str | Path | None) -> Path:
    if directory is None or not (Path(directory) / _SPACE).is_file():
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
