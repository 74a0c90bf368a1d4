"""What the studies of faults and of resuming share: a Ray, drivers and processes to kill, and when rounds ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import ray
import yaml
from ray._private.state import actors
from ray.cluster_utils import Cluster

from fedray.run_directory import EXPERIMENT, MODEL


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal to a process; False where it is gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, how)
        return True
    return False


def processes(role: str) -> dict[str, int]:
    """Names of live actors that begin so, without their run, to process ids. Ray must be connected."""
    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE" and actor["Name"].startswith(role)]
    return {str(actor["Name"]).partition(" of ")[0]: int(actor["Pid"]) for actor in alive}


HERE = str(Path(__file__).parent)
"""Workers look for modules of their own here."""
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A lost node is given up within seconds."""


class Machines:
    """A Ray of several nodes on this machine: a head, and owners' nodes that come and go."""

    def __init__(self, folder: Path, store_bytes: int = 100_000_000) -> None:
        self._folder = folder
        self._options = {"object_store_memory": store_bytes}
        head = {"num_cpus": 4, "include_dashboard": False, "temp_dir": str(folder), "_system_config": _HEALTH}
        head["labels"] = {"fedray.role": "head"}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._options, **head})
        self._nodes: dict[str, object] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def join(self, owner: str) -> None:
        """Start an owner's node, with its identity file."""
        identity = self._folder / f"{owner}.json"
        identity.write_text(json.dumps({"owners": [owner]}))
        identity.chmod(0o644)
        environment = {"FEDRAY_NODE": str(identity)}
        labels = {"fedray.owner": owner}
        self._nodes[owner] = self._cluster.add_node(num_cpus=1, labels=labels, env_vars=environment, **self._options)

    def lose(self, owner: str) -> None:
        """Kill the processes of an owner's node."""
        self._cluster.remove_node(self._nodes.pop(owner), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def machines(owners: Sequence[str] = (), store_bytes: int = 100_000_000) -> Iterator[Machines]:
    """A head and owners' nodes, with this process connected."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = Machines(Path(folder), store_bytes)
        try:
            ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
            for owner in owners:
                started.join(owner)
            yield started
        finally:
            started.close()


class Driver:
    """``fedray run`` in a process of its own, which can be killed and resumed.

    Args:
        settings: of the experiment.
        directory: of the run; experiment and output lie beside it.
        address: of the Ray that it uses; its own if left out, which goes with it.
        temp_dir: where a Ray of its own keeps its files; short.
    """

    def __init__(
        self, settings: Mapping[str, object], directory: Path, address: str | None = None, temp_dir: Path | None = None
    ) -> None:
        self.directory = directory
        self._experiment = directory.with_suffix(".yaml")
        self._experiment.write_text(yaml.safe_dump(dict(settings)))
        self._where = ["--address", address] if address else []
        self._environment = {**os.environ, **({"RAY_TMPDIR": str(temp_dir)} if temp_dir else {})}
        self._log = directory.with_suffix(".log").open("w")
        self._process = self._started()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def resume(self) -> None:
        """Go on; what was killed before it had begun is begun again."""
        self._process = self._started()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def is_finished(self) -> bool:
        """Whether the run ended with all rounds."""
        return (self.directory / MODEL).is_file() and not self.is_running

    def wait(self, timeout_s: float = 300.0) -> None:
        """Wait until it has ended; one that does not is killed. What an unfinished one has said is printed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self.kill()
        self._log.close()
        if not self.is_finished:
            print(Path(self._log.name).read_text()[-2000:], file=sys.stderr)

    def _started(self) -> subprocess.Popen[bytes]:
        if (self.directory / EXPERIMENT).is_file():
            what = ["--resume", self.directory]
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
            what = [self._experiment, "--out", self.directory]
        command = [Path(sys.executable).with_name("fedray"), "run", *what, *self._where]
        return subprocess.Popen(
            list(map(str, command)), env=self._environment, stdout=self._log, stderr=subprocess.STDOUT
        )


def until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until something holds; False where it does not in time."""
    ends = time.monotonic() + timeout_s
    while not (found := holds()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def rounds_done(directory: Path) -> int:
    """Of the newest checkpoint in a run directory; 0 where there is none."""
    names = [path.stem for path in (directory / "checkpoints").glob("round-*.safetensors")]
    return max((int(name.partition("-")[2]) for name in names), default=0)


@dataclass(frozen=True)
class Ended:
    """That a round ended, when, and with how many of the updates that it asked for."""

    time: float
    round: int
    n_asked: int
    n_updates: int

    @property
    def is_whole(self) -> bool:
        return self.n_asked == self.n_updates


def rounds_ended(directory: Path, since: float) -> list[Ended]:
    """Rounds that ended after a moment, from the run's log of events, as far as its lines are whole."""
    found: list[Ended] = []
    with suppress(FileNotFoundError):
        for line in reversed((directory / "events.jsonl").read_text().splitlines()):
            with suppress(json.JSONDecodeError):
                one = json.loads(line)
                time = datetime.fromisoformat(one["time"]).timestamp()
                if time <= since:
                    break
                if one["event"] == "round ended":
                    found.append(Ended(time, one["round"], one["figures"]["asked"], one["figures"]["updates"]))
    return found[::-1]


def whole_again(directory: Path, since: float) -> float | None:
    """When the first round had ended that began after a moment and in which all owners are; None where there is none.

    A round begins when the one before it ends.
    """
    return next((one.time for _, one in pairwise(rounds_ended(directory, since)) if one.is_whole), None)
