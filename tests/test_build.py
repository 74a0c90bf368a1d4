"""From the experiment to its parts: every setting arrives where it acts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toys import TABLE, Meddling, assignment, examples, plan, shard

from fedray.build import check, make_strategy, make_task, open_federation, open_owner
from fedray.config import validated
from fedray.errors import ConfigError, DataError, ModelError
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.privacy.plain_mean import PlainMean
from fedray.protection.identity import Identity, key_file
from fedray.protection.masked.messages import Invite, Keys
from fedray.protection.wire import decode, encode
from fedray.rounds import federate
from fedray.strategies import FedAvg, FedProx
from fedray.tasks.descent import ShuffledDescent
from fedray.values import Absent, Examples, Schema, Sealed, Shard, Work

RUN = "a run"
SMALL: dict[str, Any] = {"data": {"name": "digits", "owners": 3, "split": "iid"}, "model": "logistic"}


def test_a_strategy_is_made_of_its_section() -> None:
    shared: dict[str, Any] = {"weighting": "uniform", "server_lr": 0.5, "server_momentum": 0.25}
    fedavg = make_strategy(validated({"strategy": {"name": "fedavg", **shared}, "train": {"steps": 7}}))
    assert fedavg == FedAvg(Work(7, "steps"), **shared)
    assert type(fedavg) is FedAvg
    fedprox = make_strategy(validated({"strategy": {"name": "fedprox", "mu": 0.75, **shared}, "train": {"epochs": 3}}))
    assert fedprox == FedProx(Work(3, "epochs"), mu=0.75, **shared)
    assert make_strategy(validated({})).plan({}, 1).work == Work(1, "epochs")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "sgd", "lr": 0.3, "momentum": 0.8, "weight_decay": 0.05}, torch.optim.SGD),
        ({"name": "adam", "lr": 0.02, "weight_decay": 0.05}, torch.optim.Adam),
    ],
)
def test_an_optimizer_is_made_of_its_section(section: dict[str, Any], expected: Any) -> None:
    """One epoch of full batches equals the same optimizer written out in torch."""
    task = make_task(
        validated({"train": {"optimizer": section}, "model": {"name": "logistic", "zero_init": True}}),
        TABLE,
        ShuffledDescent(100),
    )
    rows = shard()
    found = task.train(np.zeros(18, np.float32), assignment(plan(3)), rows, 0).delta
    linear = torch.nn.Linear(5, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = expected(linear.parameters(), **{key: value for key, value in section.items() if key != "name"})
    for _ in range(3):
        optimizer.zero_grad()
        outputs = linear(torch.from_numpy(rows.train.features))
        torch.nn.functional.cross_entropy(outputs, torch.from_numpy(rows.train.targets)).backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in linear.parameters()]).numpy()
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-6)


def test_a_loss_may_be_a_class_of_torch_by_its_import_path() -> None:
    by_path = make_task(validated({"loss": "torch.nn:CrossEntropyLoss"}), TABLE, ShuffledDescent(4))
    by_name = make_task(validated({}), TABLE, ShuffledDescent(4))
    vector, rows = by_name.initial(0), examples(9)
    assert by_path.evaluate(vector, rows).sums["loss"] == pytest.approx(by_name.evaluate(vector, rows).sums["loss"])


@pytest.mark.parametrize(
    ("raw", "schema", "n_outputs"),
    [
        ({}, TABLE, 3),
        ({"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}, Schema((5,), "float32", (), 2), 1),
        ({"loss": "mse", "metrics": ["squared_error"]}, Schema((5,), "float32", (), None), 1),
        ({"loss": "mse", "metrics": ["squared_error"]}, Schema((5,), "float32", (2,), None), 2),
    ],
)
def test_a_built_in_model_has_the_outputs_that_its_loss_needs(raw: Any, schema: Schema, n_outputs: int) -> None:
    task = make_task(validated({**raw, "model": "logistic"}), schema, ShuffledDescent(4))
    assert task.n_parameters == 6 * n_outputs
    task.check(schema)


def test_one_output_for_three_classes_is_refused() -> None:
    raw = {"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}
    with pytest.raises(ModelError, match="3 classes"):
        make_task(validated(raw), TABLE, ShuffledDescent(4))


def test_a_regression_learns_a_line() -> None:
    task = make_task(
        validated({"loss": "mse", "metrics": ["squared_error", "absolute_error"], "model": "logistic"}),
        Schema((1,), "float32", (), None),
        ShuffledDescent(10),
    )
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    rows = Examples(x, (2 * x[:, 0] - 0.5).astype(np.float32))
    vector = task.initial(0)
    vector = vector + task.train(vector, assignment(plan(100)), Shard(rows, rows), 0).delta
    np.testing.assert_allclose(vector, [2.0, -0.5], atol=1e-3)
    assert task.evaluate(vector, rows).means["squared_error"] < 1e-5


def test_an_owner_whose_rows_have_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0] * 5, "y": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"x": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "b.parquet")
    experiment = validated({"data": {"name": "tables", "path": tmp_path, "classes": [0, 1]}, "model": "logistic"})
    open_owner(experiment, "a", 1, tmp_path / "state", RUN)
    with pytest.raises(DataError, match=r"b\.parquet"):
        open_owner(experiment, "b", 1, tmp_path / "state", RUN)


def test_a_cohort_larger_than_a_folder_of_owners_is_found_by_the_check(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "a.parquet")
    data = {"name": "tables", "path": tmp_path, "classes": [0, 1]}
    cohort = {"name": "fixed", "size": 2}
    with pytest.raises(ConfigError, match="2 owners in a round"):
        check(validated({"data": data, "model": "logistic", "cohort": cohort, "protection": "plain"}))


def test_a_federation_has_every_owner_and_the_servers_test_set(tmp_path: Path) -> None:
    raw = {**SMALL, "data": {**SMALL["data"], "central_test": 0.25}}
    federation = open_federation(validated(raw), InProcessCohort, tmp_path)
    population = federation.cohort.population
    assert list(population.names) == ["owner-00", "owner-01", "owner-02"]
    assert federation.central_test is not None
    assert population.n_train.sum() + population.n_holdout.sum() + len(federation.central_test) == 1797
    assert federation.task.n_parameters == 650
    assert federation.weight_bound == 512
    assert isinstance(federation.mechanism, PlainMean)
    assert (federation.cohort_seed, federation.evaluates_owners, federation.worst_spent) == (0, True, None)
    assert population.n_train.max() <= 512


# Protection ---------------------------------------------------------------------------------------------------------


def _tables(folder: Path, *names: str) -> dict[str, Any]:
    """Owners with ten rows each."""
    folder.mkdir(exist_ok=True)
    for name in names:
        frame = pd.DataFrame({"x": np.arange(10.0), "y": np.arange(10.0)[::-1], "target": [0, 1] * 5})
        frame.to_parquet(folder / f"{name}.parquet")
    return {"name": "tables", "path": folder, "classes": [0, 1], "holdout": 0.0}


@pytest.mark.parametrize("n_owners", [1, 2])
def test_too_few_owners_to_be_hidden_are_found_by_the_check(n_owners: int, tmp_path: Path) -> None:
    """Owners of files are not in the experiment, so its own rules cannot tell."""
    raw = {"data": _tables(tmp_path, *["ann", "bob"][:n_owners]), "model": "logistic"}
    with pytest.raises(ConfigError, match=f"{n_owners} owners? under protection 'masked'") as error:
        check(validated(raw))
    assert "3" in error.value.expected
    assert "protection: plain" in error.value.remedy
    check(validated({**raw, "protection": "plain"}))


def test_sums_that_do_not_fit_are_found_by_the_check() -> None:
    for name in ("plain", "masked"):
        with pytest.raises(ConfigError, match=r"protection\.precision 1e-09 for 3 owners"):
            check(validated({**SMALL, "protection": {"name": name, "precision": 1e-9}}))


def test_the_ring_is_made_for_the_owners_of_a_round_and_not_for_all() -> None:
    """4000 owners with 2**20 units each take 33 bits, 400 take 30."""
    raw = {"data": {"name": "synthetic", "owners": 4000}, "model": "logistic", "protection": {"name": "plain"}}
    with pytest.raises(ConfigError, match="4000 owners"):
        check(validated(raw))
    check(validated({**raw, "cohort": {"name": "fixed", "size": 400}}))


def test_weights_are_scaled_by_the_power_of_two_from_the_largest_shard(tmp_path: Path) -> None:
    for weighting, bound in (("examples", 16), ("uniform", 1)):
        raw = {"data": _tables(tmp_path / "data", *"abc"), "strategy": {"name": "fedavg", "weighting": weighting}}
        federation = open_federation(validated({**raw, "model": "logistic"}), InProcessCohort, tmp_path / weighting)
        assert federation.weight_bound == bound


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_owners_keep_what_their_protection_needs_and_no_more(protection: str, tmp_path: Path) -> None:
    """Under masks a signing key that no one else may read, and once it has sealed the round's number."""
    federation = open_federation(validated({**SMALL, "protection": protection, "rounds": 2}), InProcessCohort, tmp_path)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    names = ["owner-00", "owner-01", "owner-02"]
    assert kept == []
    list(federate(federation))
    for path in tmp_path.rglob("*.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o077 == 0
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    each = ["identity.pem", "sealed_rounds.json", "sealed_rounds.lock"] if protection == "masked" else []
    assert kept == [f"{name}/{file}" for name in names for file in each]


def test_an_owner_that_is_opened_again_keeps_its_identity(tmp_path: Path) -> None:
    experiment = validated(SMALL)
    first = _identity(open_owner(experiment, "owner-00", 1, tmp_path / "state", RUN))
    assert _identity(open_owner(experiment, "owner-00", 1, tmp_path / "state", RUN)) == first
    assert len(first) == 32
    assert _identity(open_owner(experiment, "owner-01", 1, tmp_path / "other", RUN)) != first


def _identity(owner: Owner) -> bytes:
    """The public key that an owner answers an invitation with."""
    answer = owner.answer(1, encode(Invite(bytes(16), 1)))
    assert isinstance(answer, bytes)
    return decode(answer, Keys).identity


def test_masks_and_none_give_the_same_bits_in_every_round(tmp_path: Path) -> None:
    raw = {**SMALL, "rounds": 3, "cohort": {"name": "fixed", "size": 4}, "data": {**SMALL["data"], "owners": 5}}
    found = [
        [
            record
            for _, record in federate(open_federation(validated({**raw, "protection": one}), InProcessCohort, folder))
        ]
        for one, folder in (("plain", tmp_path / "plain"), ("masked", tmp_path / "masked"))
    ]
    assert [r.parameters_sha256 for r in found[0]] == [r.parameters_sha256 for r in found[1]]
    assert {r.sum.protection for r in found[1]} == {"masked"}
    assert {r.sum.outcome for r in (*found[0], *found[1])} == {"opened"}


class Enrolled:
    """Three owners' signing keys where ``fedray enrol`` keeps them."""

    def __init__(self) -> None:
        names = ["owner-00", "owner-01", "owner-02"]
        self.identities = {name: Identity.kept(key_file(name)) for name in names}
        for identity in self.identities.values():
            identity.save()
        self.public = {name: one.public.hex() for name, one in self.identities.items()}

    def experiment(self, **protection: Any) -> Any:
        section = {"name": "masked", "identities": self.public, **protection}
        return validated({**SMALL, "rounds": 2, "protection": section})


@pytest.fixture
def enrolled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enrolled:
    monkeypatch.setenv("FEDRAY_KEYS", str(tmp_path / "keys"))
    return Enrolled()


@pytest.mark.parametrize("server", ["honest", "may_lie"])
def test_owners_sign_with_the_keys_that_were_enrolled(enrolled: Enrolled, server: str, tmp_path: Path) -> None:
    experiment = enrolled.experiment(server=server)
    found = {name: open_owner(experiment, name, 1, tmp_path / "asked" / name, RUN) for name in enrolled.public}
    assert {name: _identity(owner).hex() for name, owner in found.items()} == enrolled.public
    federation = open_federation(experiment, InProcessCohort, tmp_path / "owners")
    records = [record for _, record in federate(federation)]
    assert [(r.n_updates, r.sum.outcome, r.sum.identities) for r in records] == [(3, "opened", "enrolled")] * 2
    assert not list((tmp_path / "owners").rglob("*.pem"))


def test_an_owner_whose_key_is_another_than_the_enrolled_one_is_refused_by_name(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    key_file("owner-01").unlink()
    with pytest.raises(ConfigError, match=r"no signing key in .*owner-01\.pem"):
        open_owner(enrolled.experiment(), "owner-01", 1, tmp_path / "state", RUN)
    stranger = Identity.kept(key_file("owner-01"))
    stranger.save()
    other = stranger.public.hex()
    with pytest.raises(ConfigError, match="owner 'owner-01' signs with a key that is not the one") as error:
        open_owner(enrolled.experiment(), "owner-01", 1, tmp_path / "state", RUN)
    assert other in error.value.remedy
    open_owner(enrolled.experiment(), "owner-00", 1, tmp_path / "state", RUN)


def test_an_owner_that_is_not_enrolled_where_others_are_is_found_by_the_check(enrolled: Enrolled) -> None:
    del enrolled.public["owner-02"]
    with pytest.raises(ConfigError, match="owner-02") as error:
        check(enrolled.experiment())
    assert "fedray enrol" in error.value.remedy


def test_a_journal_that_cannot_be_read_is_refused_before_anything_is_sealed(tmp_path: Path) -> None:
    (tmp_path / "sealed_rounds.json").write_text("[")
    with pytest.raises(ConfigError, match=r"sealed_rounds\.json cannot be read"):
        open_owner(validated(SMALL), "owner-00", 1, tmp_path, RUN)


def test_a_round_that_was_sealed_is_not_sealed_again_by_an_owner_that_was_restarted(tmp_path: Path) -> None:
    """All owners are opened anew in the middle of a run: the server's round goes on with a number that was used."""

    class Restarting(Meddling):
        def __init__(self, openers: Mapping[str, Any]) -> None:
            self._openers = openers
            super().__init__(InProcessCohort(openers), self.restarted)

        def restarted(self, answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
            self._cohort = InProcessCohort(self._openers)
            return answers

    federation = open_federation(validated({**SMALL, "rounds": 1}), Restarting, tmp_path)
    ((_, record),) = federate(federation)
    assert (record.n_updates, record.sum.outcome) == (0, "abandoned")
    combiner = federation.combiner(1, ["owner-00", "owner-01", "owner-02"])
    assert list(combiner.owners) == []
    assert all("round 1 again" in reason for reason in combiner.lost.values())
    assert list(federation.combiner(2, ["owner-00", "owner-01", "owner-02"]).owners) == [
        "owner-00",
        "owner-01",
        "owner-02",
    ]


# Ledgers ------------------------------------------------------------------------------------------------------------

PRIVATE: dict[str, Any] = {
    **SMALL,
    "rounds": 1,
    "train": {"batch_size": 300},
    "protection": "plain",
    "privacy": {"name": "example", "noise_multiplier": 4.0},
}
NAMES = ["owner-00", "owner-01", "owner-02"]


def _charged(file: Path, owner: str) -> list[tuple[str, str, int | None, str]]:
    releases = Ledger(LedgerFile(file), owner).releases()
    return [(release.run, release.experiment, release.round, release.unit) for release in releases]


def test_each_owner_keeps_a_ledger_of_the_run_which_says_which_run_it_was(tmp_path: Path) -> None:
    list(federate(open_federation(validated(PRIVATE), InProcessCohort, tmp_path)))
    run = (tmp_path / "run").read_text()
    for name in NAMES:
        assert _charged(tmp_path / name / "ledger.jsonl", name) == [(run, "experiment", 1, "example")]
    list(federate(open_federation(validated(PRIVATE), InProcessCohort, tmp_path)))
    assert _charged(tmp_path / NAMES[0] / "ledger.jsonl", NAMES[0]) == [(run, "experiment", 1, "example")] * 2
    list(federate(open_federation(validated(PRIVATE), InProcessCohort, tmp_path / "another")))
    assert (tmp_path / "another" / "run").read_text() != run


def test_an_owner_that_has_opened_a_ledger_on_its_machine_writes_to_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run would keep; its budget over all runs holds for this one."""
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "machine"))
    Ledger(LedgerFile(ledger_path("owner-01")), "owner-01").set_budget("example", 0.01, 1e-5)
    ((_, record),) = federate(open_federation(validated(PRIVATE), InProcessCohort, tmp_path / "run"))
    assert [owner.outcome for owner in record.owners] == ["update", "exhausted", "update"]
    assert [(tmp_path / "run" / name / "ledger.jsonl").exists() for name in NAMES] == [True, False, True]
    assert _charged(ledger_path("owner-01"), "owner-01") == []
    Ledger(LedgerFile(ledger_path("owner-01")), "owner-01").set_budget("example", 10.0, 1e-5)
    list(federate(open_federation(validated(PRIVATE), InProcessCohort, tmp_path / "again")))
    run = (tmp_path / "again" / "run").read_text()
    assert _charged(ledger_path("owner-01"), "owner-01") == [(run, "experiment", 1, "example")]
