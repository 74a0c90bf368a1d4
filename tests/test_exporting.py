"""Exported runs, read back by TensorBoard's and MLflow's own readers and held against the record file."""

from __future__ import annotations

import json
import math
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from fedray.config import Experiment
from fedray.errors import ConfigError, RecordsError, RunDirectoryError
from fedray.exporting.runs import FILES, Exported, find
from fedray.records import PARQUET, RunRecords, read_run, write_parquet
from fedray.running import MODEL, run

EXPERIMENT = Experiment(
    name="told",
    rounds=3,
    data={"name": "digits", "owners": 3},
    model={"name": "mlp", "hidden": [8, 4]},
    train={"batch_size": 64},
    evaluation={"every": 2},
)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that has ended, with a report beside its records, and an epsilon in them."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    rounds = [
        replace(record, epsilon=record.round / 2, epsilon_rdp=float(record.round))
        for record in run(EXPERIMENT, folder, in_process=True)
    ]
    rewritten(folder, rounds=tuple(rounds))
    (folder / "report.html").write_text("<html>the report</html>")
    return folder


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    """A copy of one's own; its times are kept."""
    return Path(shutil.copytree(origin, tmp_path / "runs" / "a"))


def the(folder: Path) -> Exported:
    (found,) = find(folder)
    return found


def rewritten(folder: Path, **changes: Any) -> RunRecords:
    changed = replace(read_run(folder), **changes)
    write_parquet(folder / PARQUET, changed)
    return changed


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Every figure by round, read from the Parquet file column by column."""
    figures: dict[str, dict[int, float]] = {}
    columns = {
        "epsilon": "privacy/epsilon",
        "epsilon_rdp": "privacy/epsilon_rdp",
        "n_updates": "updates/summed",
        "n_rejected": "updates/rejected",
        "bytes_up": "bytes/up",
        "bytes_down": "bytes/down",
    }
    for row in pq.read_table(folder / PARQUET).to_pylist():
        found = {name: row[column] for column, name in columns.items()}
        for part in ("metrics", "train_metrics", "central_metrics", "seconds"):
            found |= {f"{part}/{name}": value for name, value in row[part]}
        for name, value in found.items():
            figures.setdefault(name, {})[row["round"]] = value
    assert set(figures["metrics/accuracy"]) == {2, 3}, "the first round was not evaluated"
    return figures


def test_a_run_is_known_by_its_records_wherever_they_lie_and_while_it_goes_on(folder: Path, tmp_path: Path) -> None:
    known = the(folder).identity
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    rewritten(copy, rounds=read_run(folder).rounds[:1], status="running")
    assert the(copy).identity == known
    assert len(known) == 12


def test_two_runs_of_one_experiment_are_two(folder: Path, tmp_path: Path) -> None:
    next(iter(run(EXPERIMENT, tmp_path / "b", in_process=True)))
    once, again = the(tmp_path / "b"), the(folder)
    assert once.records.rounds[0].parameters_sha256 == again.records.rounds[0].parameters_sha256
    assert once.identity != again.identity


def test_a_directory_without_an_ended_round_is_an_error(folder: Path, tmp_path: Path) -> None:
    rewritten(folder, rounds=(), status="failed")
    with pytest.raises(RecordsError, match="no round"):
        find(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordsError, match="no records"):
        find(tmp_path / "empty")


def test_what_lies_beside_is_of_the_run_and_not_of_a_comparison(folder: Path, tmp_path: Path) -> None:
    assert MODEL in FILES
    assert {path.name for path in the(folder).files} == set(FILES)
    trials = tmp_path / "search" / "trials"
    trials.mkdir(parents=True)
    shutil.copy(folder / PARQUET, trials / "mu=0.1.parquet")
    (trials / "report.html").write_text("of all trials")
    found = the(tmp_path / "search")
    assert (found.records.label, found.files) == ("mu=0.1", ())


def test_times_are_reckoned_back_from_the_end(folder: Path) -> None:
    seconds = expected(folder)["seconds/total"]
    ended = (folder / PARQUET).stat().st_mtime
    times = {record.round: time for time, record in the(folder).timed()}
    assert times[3] == ended
    assert times[2] == pytest.approx(ended - seconds[3], abs=1e-3)
    assert the(folder).began_s == pytest.approx(ended - sum(seconds.values()), abs=1e-3)


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")

    def told(self, folder: Path, board: Path) -> Path:
        from fedray.exporting.to_tensorboard import export

        return export(the(folder), board)

    def read(self, folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        return accumulator

    def test_every_figure_of_every_round_is_there_at_its_time(self, folder: Path, tmp_path: Path) -> None:
        where = self.told(folder, tmp_path / "board")
        board, figures = self.read(where), expected(folder)
        times = {record.round: time for time, record in the(folder).timed()}
        results = {"metrics/loss", "metrics/accuracy", "privacy/epsilon", "privacy/epsilon_rdp"}
        assert set(board.Tags()["scalars"]) == {*figures, *(f"final/{name}" for name in results)}
        for name in results:
            assert board.Scalars(f"final/{name}")[0].value == pytest.approx(figures[name][3], rel=1e-6)
        for name, by_round in figures.items():
            found = board.Scalars(name)
            assert [point.step for point in found] == sorted(by_round)
            assert [point.value for point in found] == pytest.approx([by_round[n] for n in sorted(by_round)], rel=1e-6)
            assert [point.wall_time for point in found] == pytest.approx([times[n] for n in sorted(by_round)])

    def test_settings_are_there_as_hyperparameters(self, folder: Path, tmp_path: Path) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        told = self.read(self.told(folder, tmp_path / "board")).summary_metadata["_hparams_/session_start_info"]
        hparams = HParamsPluginData.FromString(told.plugin_data.content).session_start_info.hparams
        found = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
        assert found["train.batch_size"] == 64
        assert found["model.hidden"] == "[8, 4]"
        assert found["train.optimizer.name"] == EXPERIMENT.train.optimizer.name
        assert found["evaluation.train"] == 0, "torch writes booleans as numbers"
        assert "deadline_s" not in found

    def test_a_run_that_went_on_and_was_moved_is_there_once_and_in_full(self, folder: Path, tmp_path: Path) -> None:
        whole = read_run(folder)
        rewritten(folder, rounds=whole.rounds[:2], status="running")
        first = self.told(folder, tmp_path / "board")
        (first / "notes.txt").write_text("mine")
        folder = folder.rename(folder.with_name("renamed"))
        rewritten(folder, rounds=whole.rounds, status="complete")
        assert self.told(folder, tmp_path / "board") == first
        assert [path.name for path in (tmp_path / "board").iterdir()] == [first.name]
        assert [point.step for point in self.read(first).Scalars("seconds/total")] == [1, 2, 3]
        assert (first / "notes.txt").read_text() == "mine"

    def test_a_place_that_cannot_be_written_to_is_an_error(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "board").write_text("a file")
        with pytest.raises(RunDirectoryError, match="board"):
            self.told(folder, tmp_path / "board")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's database; its files lie below the working directory."""
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    here = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        yield f"sqlite:///{here}/mlflow.db"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
class TestMlflow:
    """Each test has an MLflow experiment of its own, named after it."""

    @pytest.fixture
    def folder(self, folder: Path, request: pytest.FixtureRequest) -> Path:
        rewritten(folder, experiment={**read_run(folder).experiment, "name": request.node.name})
        return folder

    @pytest.fixture
    def client(self, tracking: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=tracking)

    def told(self, folder: Path, tracking: str) -> str:
        from fedray.exporting.to_mlflow import export

        return export(the(folder), tracking)

    def figures(self, client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
        names = client.get_run(run_id).data.metrics
        return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}

    def test_every_figure_of_every_round_is_there_once(self, folder: Path, tracking: str, client: Any) -> None:
        run_id = self.told(folder, tracking)
        wanted = {name: sorted(by_round.items()) for name, by_round in expected(folder).items()}
        assert self.figures(client, run_id) == wanted
        assert self.told(folder, tracking) == run_id
        assert self.figures(client, run_id) == wanted
        name = the(folder).experiment
        assert len(client.search_runs([client.get_experiment_by_name(name).experiment_id])) == 1

    def test_settings_tags_and_times_are_those_of_the_run(self, folder: Path, tracking: str, client: Any) -> None:
        found = client.get_run(self.told(folder, tracking))
        records = read_run(folder)
        assert found.info.run_name == "a"
        assert found.data.params["train.batch_size"] == "64"
        assert found.data.params["model.hidden"] == "[8, 4]"
        assert "deadline_s" not in found.data.params
        assert flat(found.data.params) == flat(dotted(records.experiment))
        assert found.data.tags["fedray.status"] == "complete"
        assert found.data.tags["fedray.version"] == records.environment["fedray"]
        assert found.data.tags["fedray.parameters_sha256"] == records.rounds[-1].parameters_sha256
        assert found.info.end_time - found.info.start_time == pytest.approx(
            1000 * sum(expected(folder)["seconds/total"].values()), abs=2
        )

    def test_files_are_there_as_they_lie_beside_the_records(
        self, folder: Path, tracking: str, client: Any, tmp_path: Path
    ) -> None:
        run_id = self.told(folder, tracking)
        (tmp_path / "down").mkdir()
        down = Path(client.download_artifacts(run_id, "", str(tmp_path / "down")))
        assert {path.name for path in down.iterdir()} == {*FILES, "experiment.yaml"}
        for name in FILES:
            assert (down / name).read_bytes() == (folder / name).read_bytes()
        assert yaml.safe_load((down / "experiment.yaml").read_text()) == read_run(folder).experiment

    @pytest.mark.parametrize(
        ("status", "shown"),
        [("running", "RUNNING"), ("exhausted", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED")],
    )
    def test_how_it_ended_is_said_in_mlflows_words(
        self, status: Any, shown: str, folder: Path, tracking: str, client: Any
    ) -> None:
        rewritten(folder, status=status)
        found = client.get_run(self.told(folder, tracking))
        assert (found.info.status, found.data.tags["fedray.status"]) == (shown, status)

    def test_a_run_that_went_on_gets_the_rounds_that_it_lacked(self, folder: Path, tracking: str, client: Any) -> None:
        whole = read_run(folder)
        rewritten(folder, rounds=whole.rounds[:1], status="running")
        run_id = self.told(folder, tracking)
        assert client.get_run(run_id).info.status == "RUNNING"
        rewritten(folder, rounds=whole.rounds, status="complete")
        assert self.told(folder, tracking) == run_id
        assert [step for step, _ in self.figures(client, run_id)["seconds/total"]] == [1, 2, 3]
        found = client.get_run(run_id)
        assert found.info.status == "FINISHED"
        assert found.data.tags["fedray.parameters_sha256"] == whole.rounds[-1].parameters_sha256

    @pytest.mark.parametrize("n_calls", [1, 2, 3])
    def test_an_export_that_was_cut_off_is_completed_by_the_next(
        self, n_calls: int, folder: Path, tracking: str, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = type(client).log_batch, iter(range(n_calls))

        def cut_off(self: Any, *args: Any, **options: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(client), "log_batch", cut_off)
            with pytest.raises(KeyboardInterrupt):
                self.told(folder, tracking)
        run_id = self.told(folder, tracking)
        wanted = {name: sorted(by_round.items()) for name, by_round in expected(folder).items()}
        assert self.figures(client, run_id) == wanted
        assert flat(client.get_run(run_id).data.params) == flat(dotted(read_run(folder).experiment))

    def test_settings_beyond_mlflows_limits_are_cut(self, folder: Path, tracking: str, client: Any) -> None:
        odd = {"long": "x" * 9000, "k" * 300: 1, "placement": {"st. mary's": {"cpus": 2}}}
        rewritten(folder, experiment={"name": the(folder).experiment, **odd, **{f"setting_{n}": n for n in range(250)}})
        params = client.get_run(self.told(folder, tracking)).data.params
        assert params["long"] == "x" * 500
        assert params["k" * 250] == "1"
        assert params["placement.st. mary_s.cpus"] == "2"
        assert [params[f"setting_{n}"] for n in range(250)] == [str(n) for n in range(250)]

    def test_figures_that_are_not_finite_do_not_stop_an_export(self, folder: Path, tracking: str, client: Any) -> None:
        whole = read_run(folder)
        worse = replace(whole.rounds[1], metrics={"loss": math.nan, "f1@5": 0.5})
        rewritten(folder, rounds=(whole.rounds[0], worse))
        found = self.figures(client, self.told(folder, tracking))
        assert math.isnan(found["metrics/loss"][0][1])
        assert found["metrics/f1_5"] == [(2, 0.5)]

    def test_a_server_that_does_not_answer_is_an_error_without_the_password(
        self, folder: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}") as raised:
            self.told(folder, f"http://bob:hunter2@127.0.0.1:{port}")
        assert "hunter2" not in str(raised.value)
        assert "bob" not in str(raised.value)

    def test_makers_of_mlflow_are_not_told(self, tracking: str) -> None:
        from mlflow.telemetry.utils import is_telemetry_disabled

        import fedray.exporting.to_mlflow  # noqa: F401

        assert is_telemetry_disabled()


def dotted(value: Any, at: tuple[str, ...] = ()) -> dict[str, Any]:
    """Leaves of nested mappings that are set, by another way round than the exporter's."""
    if not isinstance(value, Mapping):
        return {} if value is None else {".".join(at): json.dumps(value) if isinstance(value, list) else value}
    found: dict[str, Any] = {}
    for key in value:
        found.update(dotted(value[key], (*at, key)))
    return found


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
