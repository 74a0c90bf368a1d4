"""Owners' actors through losses: nodes that go and come back, impostors, processes that hang or were killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import ray
import toys
from own_nodes import Machines, homes, machines
from ray import cloudpickle

from fedray.actors import crew as crew_module
from fedray.actors.cohort import RayCohort
from fedray.actors.crew import Crew
from fedray.actors.session import ray_cohort
from fedray.build import open_federation
from fedray.config import Experiment, replaced
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, verify
from fedray.rounds import federate
from fedray.values import Absent, Sealed

cloudpickle.register_pickle_by_value(toys)
cloudpickle.register_pickle_by_value(sys.modules[__name__])

HOSPITALS = Experiment(
    placement={name: {"labels": {"fedray.owner": name}} for name in ("ann", "bob")},
    resources={"owner_cpus": 0.25},
    faults={"wait_s": 0.0},
)
PATIENCE = 400
"""Questions after which an owner should long have been back."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as started:
        started.join("bob", label="bob", owners=["bob", "owner-01", "owner-02"])
        yield started


@pytest.fixture
def nodes(cluster: Machines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """A head and two owners' nodes; whatever else a test has joined leaves. No sign of life stands for another."""
    monkeypatch.setattr(crew_module, "FRESH_S", 0.0)
    cluster.join("ann", label="ann", owners=["ann", "owner-00"])
    yield cluster
    for machine in cluster.joined() - {"bob"}:
        cluster.lose(machine)
    cluster.settle()


def noting(open_owner: Callable[[], Owner], log: Path) -> Owner:
    """Opens an owner, and notes on which machine."""
    with log.open("a") as file:
        file.write(Path(os.environ["FEDRAY_NODE"]).parent.name + "\n")
    return open_owner()


def openers(log: Path) -> dict[str, Callable[[], Owner]]:
    opened = toys.openers(toys.torch_task, {"ann": toys.shard(), "bob": toys.shard(seed=1)})
    return {name: partial(noting, open_owner, log) for name, open_owner in opened.items()}


def ask(cohort: RayCohort, round: int) -> dict[str, Sealed | Absent]:
    time.sleep(0.1)
    plan = toys.plan(round=round)
    vector = toys.torch_task().initial(0)
    return {one.owner: one for one in cohort.train(vector, [toys.assignment(plan, name) for name in ("ann", "bob")])}


def until_there(crew: Crew, owner: str) -> int:
    """How often it was asked for."""
    return next(number for number in range(PATIENCE) if crew.present([owner]) or time.sleep(0.1))


def pid_of(crew: Crew, owner: str) -> int:
    return int(ray.get(crew[owner].__ray_call__.remote(lambda actor: os.getpid())))


def until_ended(pid: int) -> None:
    """A killed actor answers what reaches it before the signal does."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} did not end"
        time.sleep(0.05)


def test_a_lost_node_makes_its_owner_absent_and_its_return_brings_the_owner_back(
    nodes: Machines, tmp_path: Path
) -> None:
    with closing(RayCohort(openers(tmp_path / "log"), HOSPITALS, cpus=2)) as cohort:
        assert {type(answer) for answer in ask(cohort, 1).values()} == {Sealed}
        nodes.lose("ann")
        answers = ask(cohort, 2)
        assert isinstance(answers["bob"], Sealed)
        assert answers["ann"].outcome == "absent"
        while "node is gone" not in (reason := ask(cohort, 3)["ann"].reason):
            assert "lost" in reason, "Ray has not noticed yet"
        nodes.join("ann", label="ann", owners=["ann"])
        back = next(number for number in range(4, PATIENCE) if isinstance(ask(cohort, number)["ann"], Sealed))
        assert {type(answer) for answer in ask(cohort, back + 1).values()} == {Sealed}
        assert homes()["ann"] == nodes.node_id("ann")


def test_a_round_waits_for_a_lost_node_as_long_as_it_was_told_to(nodes: Machines, tmp_path: Path) -> None:
    patient = replaced(HOSPITALS, {"faults.wait_s": 200})
    with closing(RayCohort(openers(tmp_path / "log"), patient, cpus=2)) as cohort:
        nodes.lose("ann")
        while cohort._actors.present(["ann"]):
            """Its process outlives its node's raylet for a moment."""
        with ThreadPoolExecutor(1) as thread:
            answers = thread.submit(ask, cohort, 1)
            nodes.join("ann", label="ann", owners=["ann"])
            assert {type(answer) for answer in answers.result().values()} == {Sealed}


def test_an_impostor_is_refused_before_anything_is_opened_and_the_true_node_is_found_beside_it(
    nodes: Machines, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with closing(RayCohort(openers(log), HOSPITALS, cpus=2)) as cohort:
        assert isinstance(ask(cohort, 1)["ann"], Sealed)
        impostor = nodes.join("impostor", label="ann", owners=None)
        nodes.lose("ann")
        reasons = []
        for number in range(2, PATIENCE):
            answers = ask(cohort, number)
            assert isinstance(answers["bob"], Sealed)
            reasons.append(answers["ann"].reason)
            if "refused" in reasons[-1]:
                break
        assert f"node {impostor[:16]}: no identity file {nodes.identity_file('impostor')}" in reasons[-1]
        nodes.join("ann", label="ann", owners=["ann"])
        until_there(cohort._actors, "ann")
        assert {type(answer) for answer in ask(cohort, PATIENCE).values()} == {Sealed}
        assert homes()["ann"] == nodes.node_id("ann")
    assert set(log.read_text().split()) == {"ann", "bob"}


def test_of_two_nodes_that_claim_an_owner_the_one_with_its_identity_file_gets_it(
    nodes: Machines, tmp_path: Path
) -> None:
    """At the start as well: however Ray chooses, an actor that is refused is tried on the other node."""
    nodes.join("impostor", label="ann", owners=["eve"])
    for number in range(3):
        with closing(RayCohort(openers(tmp_path / "log"), HOSPITALS, cpus=2)) as cohort:
            assert isinstance(ask(cohort, number + 1)["ann"], Sealed)
            assert homes()["ann"].partition(" ")[0] == nodes.node_id("ann")
    assert set((tmp_path / "log").read_text().split()) == {"ann", "bob"}


def test_a_node_that_refused_is_tried_again_once_nothing_else_is_left(nodes: Machines, tmp_path: Path) -> None:
    """Its administrator may have written the file since."""
    nodes.identify("ann", ["somebody"])
    with closing(Crew(openers(tmp_path / "log"), HOSPITALS, cpus=0.25)) as crew:
        assert crew.present(["ann"], wait_s=60) == set()
        assert "of somebody" in crew.gone["ann"]
        nodes.identify("ann", ["ann"])
        assert until_there(crew, "ann") < PATIENCE
        assert "ann" not in crew.gone


def test_an_actor_that_was_killed_for_good_is_made_anew(nodes: Machines, tmp_path: Path) -> None:
    with closing(Crew(openers(tmp_path / "log"), HOSPITALS, cpus=0.25, run="night shift")) as crew:
        assert crew.present(["ann", "bob"], wait_s=60) == {"ann", "bob"}
        first = crew["ann"]
        ray.kill(first)
        until_there(crew, "ann")
        assert crew["ann"]._actor_id != first._actor_id
        assert ray.get_actor("ann of night shift (2)", namespace="fedray")._actor_id == crew["ann"]._actor_id
        assert crew.present(["ann", "bob"]) == {"ann", "bob"}


def test_a_silent_owner_is_waited_for_once(nodes: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Crew(openers(tmp_path / "log"), HOSPITALS, cpus=0.25)) as crew:
        assert crew.present(["ann", "bob"], wait_s=60) == {"ann", "bob"}
        stopped = pid_of(crew, "ann")
        os.kill(stopped, signal.SIGSTOP)
        try:
            monkeypatch.setattr(crew_module, "SILENCE_S", 1.0)
            assert crew.present(["ann", "bob"]) == {"bob"}
            assert crew.gone == {"ann": "no sign of life for 1 s"}
            monkeypatch.setattr(crew_module, "SILENCE_S", 1e6)
            for _ in range(3):
                assert crew.present(["ann", "bob"]) == {"bob"}
        finally:
            os.kill(stopped, signal.SIGCONT)
        until_there(crew, "ann")
        assert crew.gone == {}
        assert pid_of(crew, "ann") == stopped


def test_a_sign_of_life_stands_for_another_until_a_call_is_lost(
    nodes: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Crew(openers(tmp_path / "log"), HOSPITALS, cpus=0.25)) as crew:
        assert crew.present(["ann", "bob"], wait_s=60) == {"ann", "bob"}
        monkeypatch.setattr(crew_module, "FRESH_S", 1e6)
        killed = pid_of(crew, "ann")
        ray.kill(crew["ann"])
        until_ended(killed)
        assert crew.present(["ann", "bob"]) == {"ann", "bob"}
        crew.doubt("ann")
        assert crew.present(["bob"]) == {"bob"}
        assert "ann" not in crew.present(["ann", "bob"])


def test_an_owner_that_hangs_answers_again_once_it_is_restarted(nodes: Machines, tmp_path: Path) -> None:
    with closing(Crew(openers(tmp_path / "log"), HOSPITALS, cpus=0.25)) as crew:
        crew.present(["ann"], wait_s=60)
        before = pid_of(crew, "ann")
        hangs = crew["ann"].__ray_call__.remote(lambda actor: signal.pause())
        assert crew.present(["ann"]) == {"ann"}, "it hangs, but its process lives"
        crew.restart("ann")
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(hangs, timeout=60)
        until_there(crew, "ann")
        assert pid_of(crew, "ann") != before


def test_an_owner_comes_back_with_the_ledger_that_is_on_its_node(nodes: Machines, tmp_path: Path) -> None:
    """Every round that it was asked in is charged there and nowhere else; the account goes on where it was."""
    owners = {"owner-00": "ann", "owner-01": "bob", "owner-02": "bob"}
    experiment = Experiment(
        rounds=300,
        data={"name": "digits", "owners": 3},
        model="logistic",
        privacy={"name": "example", "noise_multiplier": 2.0},
        protection="plain",
        placement={name: {"labels": {"fedray.owner": machine}} for name, machine in owners.items()},
        resources={"owner_cpus": 0.25},
        evaluation={"every": 1000},
        faults={"wait_s": 0.5},
    )
    for name, machine in owners.items():
        path = nodes.ledgers(machine) / f"{name}.jsonl"
        Ledger(LedgerFile(path), name).set_budget("example", 100.0, 1e-5)
    federation = open_federation(experiment, ray_cohort(experiment, 3.0), tmp_path / "state")
    mine = nodes.ledgers("ann") / "owner-00.jsonl"
    updates, lost_at, entries = 0, 0, 0
    with closing(federation.cohort):
        for _, record in federate(federation):
            first, *others = record.owners
            assert {owner.outcome for owner in others} == {"update"}
            updates += first.outcome == "update"
            if record.round == 2:
                before, entries, lost_at = first.epsilon, verify(mine).n_entries, record.round
                nodes.lose("ann")
            elif lost_at and "node is gone" in first.reason and "ann" not in nodes.joined():
                assert verify(mine).n_entries == entries
                nodes.join("ann", label="ann", owners=["owner-00"])
            elif lost_at and first.outcome == "update":
                break
    assert record.round > 4, "it was never absent"
    assert updates == 3
    assert first.epsilon == pytest.approx(epsilon_after(experiment, 3, tmp_path / "undisturbed"))
    assert before == pytest.approx(epsilon_after(experiment, 2, tmp_path / "cut short"))


def epsilon_after(experiment: Experiment, n_rounds: int, folder: Path) -> float | None:
    """What the first owner has spent after so many rounds in which nothing happened, in this process."""
    rounds = federate(open_federation(experiment, InProcessCohort, folder))
    return next(record.owners[0].epsilon for _, record in rounds if record.round == n_rounds)
