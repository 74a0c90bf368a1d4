"""The way up and down with a Ray that is made up: what it is asked, in which order, and what comes of its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cluster_files import ROOT, hospitals

from fedray.clusters.checking import read_cluster
from fedray.clusters.launcher import LauncherFile
from fedray.clusters.launching import Completed, Expected, Node, Waiting, ensure_token, start, stop
from fedray.errors import ResourcesError

SECRET = "5eed5eed"


class FakeRay:
    """Answers commands; the head reports one more node each time it is asked, as far as there are any."""

    def __init__(self, joining: Sequence[str] = (), codes: Mapping[str, int] | None = None) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self._joining = list(joining)
        self._codes = codes or {}
        self._n_asked = 0

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, shown: bool = False
    ) -> Completed:
        words = [Path(command[0]).name, *command[1:]]
        self.commands.append(words)
        self.environments.append(environment or {})
        code = next((code for part, code in self._codes.items() if part in " ".join(words)), 0)
        return Completed(code, "" if shown or code else self._answer(words))

    def _answer(self, words: list[str]) -> str:
        if words[1] == "get-auth-token":
            path = Path("~/.ray/auth_token").expanduser()
            path.write_text(SECRET)
            path.chmod(0o644)
            return SECRET + "\n"
        if words[1] == "exec":
            self._n_asked += 1
            nodes = [self._node(name) for name in self._joining[: self._n_asked]]
            return f"Warning: host key\r\n{json.dumps({'nodes': nodes})}\r\nShared connection closed.\r\n"
        return ""

    @staticmethod
    def _node(name: str) -> dict[str, object]:
        labels = {} if name == "head" else {"fedray.owner": name}
        return {"address": "10.0.0.1", "labels": labels, "resources": {"CPU": 4.0}, "is_head": name == "head"}


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def cluster(name: str) -> LauncherFile:
    found = read_cluster(ROOT / name)
    assert isinstance(found, LauncherFile)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


OWNERS = ["hospital-a", "hospital-b", "hospital-c"]


def test_all_declared_owners_are_waited_for(home: Path) -> None:
    file, clock, shown = cluster("cluster.yaml"), Clock(), list[tuple[list[str], list[str]]]()
    ray = FakeRay(["head", *OWNERS])

    def show(nodes: Sequence[Node], missing: Sequence[str]) -> None:
        shown.append((sorted(node.name for node in nodes), list(missing)))

    nodes = Waiting(file, Expected.of(file, None), ray, show, clock, clock.sleep).wait(60)
    assert sorted(node.name for node in nodes) == ["head", *OWNERS]
    assert [missing for _, missing in shown] == [OWNERS[n:] for n in range(4)]
    assert all(command[:2] == ["ray", "exec"] for command in ray.commands)


def test_whoever_does_not_join_in_time_is_named(home: Path) -> None:
    file, clock = cluster("cluster.yaml"), Clock()
    waiting = Waiting(
        file, Expected.of(file, None), FakeRay(["head", "hospital-a"]), lambda *_: None, clock, clock.sleep
    )
    with pytest.raises(ResourcesError, match=r"hospital-b, hospital-c; there are: head, hospital-a"):
        waiting.wait(60)
    assert clock.now == pytest.approx(60, abs=3)


def test_a_head_that_does_not_answer_yet_is_waited_for(home: Path) -> None:
    file, clock = cluster("cluster.yaml"), Clock()
    ray = FakeRay(codes={"exec": 1})
    with pytest.raises(ResourcesError, match="there are: nobody"):
        Waiting(file, Expected.of(file, None), ray, lambda *_: None, clock, clock.sleep).wait(9)
    assert len(ray.commands) == 4


def test_hosts_of_ones_own_are_counted_and_owners_known_from_the_experiment() -> None:
    file = cluster("clusters/local.yaml")
    head, *others = (Node("10.0.0.1", FakeRay._node(name)["labels"], {}, name == "head") for name in ["head", *OWNERS])  # type: ignore[arg-type]
    assert Expected.of(file, None).missing([head]) == ["3 more"]
    assert Expected.of(file, hospitals()).missing([head, others[0]]) == ["hospital-b", "hospital-c"]
    assert Expected.of(file, hospitals()).missing([head, *others]) == []


def test_only_hosts_of_ones_own_need_the_first_autoscaler() -> None:
    for name, expected in (("cluster.yaml", {}), ("clusters/local.yaml", {"RAY_UP_enable_autoscaler_v2": "0"})):
        ray = FakeRay()
        start(cluster(name), ray)
        assert ray.commands == [["ray", "up", "-y", str(ROOT / name)]]
        assert ray.environments == [expected]


def test_a_launch_that_fails_says_so() -> None:
    with pytest.raises(ResourcesError, match="`ray up` ended with 3"):
        start(cluster("cluster.yaml"), FakeRay(codes={"up": 3}))


def test_the_token_is_made_once_for_its_user_alone_and_never_shown(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = FakeRay()
    assert ensure_token(ray)
    token = home / ".ray" / "auth_token"
    assert (token.read_text(), token.stat().st_mode & 0o777) == (SECRET, 0o600)
    assert not ensure_token(ray)
    assert len(ray.commands) == 1
    assert SECRET not in "".join(capfd.readouterr())


def test_a_token_that_ray_cannot_make_stops_the_launch(home: Path) -> None:
    with pytest.raises(ResourcesError, match="no token"):
        ensure_token(FakeRay(codes={"get-auth-token": 1}))


def test_hosts_of_ones_own_are_stopped_one_by_one_after_the_head() -> None:
    file = cluster("clusters/local.yaml")
    ray = FakeRay(codes={"10.0.0.12": 255})
    assert stop(file, ray) == ["10.0.0.12"]
    first, *others = ray.commands
    assert first == ["ray", "down", "-y", str(file.path)]
    assert [command[0] for command in others] == ["ssh"] * 3
    for command, address in zip(others, file.worker_addresses, strict=True):
        assert f"fedray@{address}" in command
        assert "ray stop" in command[-1]


def test_in_a_cloud_ray_down_is_all() -> None:
    ray = FakeRay()
    assert stop(cluster("cluster.yaml"), ray) == []
    assert [command[:2] for command in ray.commands] == [["ray", "down"]]
