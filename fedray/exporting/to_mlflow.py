"""Runs in MLflow, by its own client: one MLflow run each, in the MLflow experiment of the experiment's name.

An MLflow run carries the identity of what it tells as a tag. Exported again it is found by it and brought up to date:
rounds that it lacks are added, its tags, status and files replaced; nothing is doubled.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from urllib.parse import urlsplit

import yaml

from fedray.errors import ConfigError
from fedray.exporting.runs import Exported, scalars
from fedray.records import Status

# Read when mlflow is loaded: its makers would be told of its use, and an address where nobody is tried for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

IDENTITY = "fedray.run"
LAST = "seconds/total"
"""A figure that every round has, written with all others of its round or not at all."""

_STATUS: dict[Status, str] = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "exhausted": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
_KEY_LENGTH = 250
_VALUE_LENGTH = 500
"""Of a parameter; newer servers take more. The whole experiment is there as a file."""
_PARAMS_AT_ONCE = 100


def export(run: Exported, uri: str) -> str:
    """Tell a run to MLflow; returns the id of its MLflow run.

    Raises:
        ConfigError: MLflow refuses, or does not answer.
    """
    try:
        client = MlflowClient(tracking_uri=uri)
        run_id = _found(client, run) or _created(client, run)
        _log_settings(client, run_id, run)
        _log_rounds(client, run_id, run)
        _log_files(client, run_id, run)
        _close(client, run_id, run)
    except MlflowException as error:
        raise ConfigError(
            f"MLflow at {_without_credentials(uri, uri)}: {_without_credentials(str(error), uri)}",
            "a tracking server, or a database such as sqlite:///mlflow.db",
            "check --mlflow",
        ) from None
    return run_id


def _experiment_id(client: MlflowClient, run: Exported) -> str:
    known = client.get_experiment_by_name(run.experiment)
    return str(known.experiment_id if known else client.create_experiment(run.experiment))


def _found(client: MlflowClient, run: Exported) -> str | None:
    found = client.search_runs([_experiment_id(client, run)], f"tags.`{IDENTITY}` = '{run.identity}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _created(client: MlflowClient, run: Exported) -> str:
    """A new MLflow run, which is found by its tag from then on."""
    created = client.create_run(
        _experiment_id(client, run),
        start_time=_ms(run.began_s),
        tags={IDENTITY: run.identity},
        run_name=run.records.label,
    )
    return str(created.info.run_id)


def _log_settings(client: MlflowClient, run_id: str, run: Exported) -> None:
    """The experiment as parameters; to say one again is no error where it is the same."""
    settings = {_key(name): str(value)[:_VALUE_LENGTH] for name, value in run.settings.items()}
    rest = (Param(name, value) for name, value in settings.items())
    while some := list(islice(rest, _PARAMS_AT_ONCE)):
        client.log_batch(run_id, params=some)


def _log_rounds(client: MlflowClient, run_id: str, run: Exported) -> None:
    """Add the rounds that are not there yet, each whole or not at all."""
    there = {metric.step for metric in client.get_metric_history(run_id, LAST)}
    for ended_s, record in run.timed():
        if record.round not in there:
            metrics = [Metric(_key(name), value, _ms(ended_s), record.round) for name, value in scalars(record).items()]
            client.log_batch(run_id, metrics=metrics)


def _log_files(client: MlflowClient, run_id: str, run: Exported) -> None:
    experiment = yaml.safe_dump(dict(run.records.experiment), sort_keys=False)
    client.log_text(run_id, experiment, "experiment.yaml")
    for path in run.files:
        client.log_artifact(run_id, str(path))


def _close(client: MlflowClient, run_id: str, run: Exported) -> None:
    """Say how the run ended, and whose model its last round left."""
    tags = {
        "fedray.status": run.records.status,
        "fedray.version": run.records.environment.get("fedray", ""),
        "fedray.parameters_sha256": run.records.rounds[-1].parameters_sha256,
    }
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    status = _STATUS[run.records.status]
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status, end_time=_ms(run.ended_s))


def _key(name: str) -> str:
    """A name that MLflow takes: what else is in it becomes an underscore."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:_KEY_LENGTH]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _credentials(uri: str) -> str:
    """What stands before the host: ``user:password@``, or nothing."""
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    return user + at


def _without_credentials(text: str, uri: str) -> str:
    """The first line of a text, without the password that is in the address."""
    shown = text.splitlines()[0] if text else "no answer"
    credentials = _credentials(uri)
    return shown.replace(credentials, "") if credentials else shown
