"""A spy on every message of a whole run, and on all that the caller is given: no row, label, id or key is in it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vertical_toys import Columns, Talk, people

from fedray.vertical.cut import MaxNorm
from fedray.vertical.fusion import Concat, MaskedSum
from fedray.vertical.models import sgd
from fedray.vertical.plans import AlignPlan, FitPlan

N = 90


def private() -> tuple[dict[str, Columns], Columns]:
    """Tables whose labels are words."""
    owners, labels = people(N, lacking=10)
    words = np.array(["benign-word", "malign-word"])[labels["label"]]
    return owners, {"pid": labels["pid"], "label": words}


def needles(owners: dict[str, Columns], labels: Columns) -> Iterator[bytes]:
    """Pairs of neighbouring values of every row in three types, ids and their plain hashes, labels in runs of eight."""
    for one in owners.values():
        for row in one["x"]:
            for start in range(len(row) - 1):
                yield from (row[start : start + 2].astype(kind).tobytes() for kind in ("<f4", "<f8", ">f4"))
    for person in owners["bank"]["pid"]:
        for text in {person, person.strip().casefold()}:
            yield text.encode()
            yield from (hashlib.new(kind, text.encode()).digest() for kind in ("md5", "sha1", "sha256"))
            yield from (hashlib.new(kind, text.encode()).hexdigest().encode() for kind in ("md5", "sha1", "sha256"))
    yield from {word.encode() for word in labels["label"].tolist()}


def label_runs(talk: Talk) -> Iterator[bytes]:
    """Labels as numbers in the orders that are used: of the table, and of each epoch; 24 in a row, in five types."""
    truth = talk.holder._truth.numpy()
    batches = talk.holder._batches
    orders = [np.arange(len(truth)), *(batches.batch("step", epoch, 0, N).numpy() for epoch in (1, 2))]
    for order in orders:
        for start in (0, 20):
            run = truth[order[start : start + 24]]
            yield from (run.astype(kind).tobytes() for kind in ("u1", "<i4", "<i8", "<f4", "<f8"))


def whole_run(talk: Talk, fusion: Concat | MaskedSum, folder: Path) -> list[Any]:
    """All that a caller can ask for; returns what it is given."""
    given: list[Any] = [party.describe() for party in (*talk.owners.values(), talk.holder)]
    talk.holder.meet()
    given += [talk.holder.count(), talk.holder.align(AlignPlan("allow"))]
    talk.prepared(fusion)
    talk.begun(FitPlan(30, sgd(0.2), MaxNorm()))
    given += [talk.holder.epoch(), talk.holder.epoch(), talk.holder.predict("holdout"), talk.holder.predict("train")]
    talk.holder.write_predictions("holdout", folder / "predicted.csv")
    for party in (*talk.owners.values(), talk.holder):
        party.save(folder)
    return given


@pytest.mark.parametrize("fusion", [Concat(), MaskedSum()])
def test_rows_labels_and_ids_never_leave_their_party(fusion: Concat | MaskedSum, tmp_path: Path) -> None:
    owners, labels = private()
    talk = Talk(owners, labels)
    given = whole_run(talk, fusion, tmp_path)
    between = b"".join(pickle.dumps(one) for one in talk.said)
    to_caller = b"".join(pickle.dumps(one) for one in given)
    looked_for = set(needles(owners, labels)) | set(label_runs(talk))
    assert len(looked_for) > 2000
    for spoken in (between, to_caller):
        assert [one for one in looked_for if one in spoken] == []


def test_the_spy_would_find_them() -> None:
    owners, labels = private()
    talk = Talk(owners, labels)
    talk.aligned(AlignPlan("allow"))
    tables = pickle.dumps([{key: np.asarray(one[key]) for key in one} for one in owners.values()])
    as_text = "".join([*owners["bank"]["pid"], *labels["label"].tolist()]).encode()
    found = {one for one in needles(owners, labels) if one in tables or one in as_text}
    assert len(found) > 400
    runs = list(label_runs(talk))
    assert runs[0] in pickle.dumps(talk.holder._truth.numpy().astype("u1"))


def test_no_key_of_a_party_is_in_any_message(tmp_path: Path) -> None:
    talk = Talk(*private())
    given = whole_run(talk, MaskedSum(), tmp_path)
    spoken = b"".join(pickle.dumps(one) for one in [*talk.said, *given])
    rings = [party._keyring for party in (*talk.owners.values(), talk.holder)]
    secrets = {ring._private.private_bytes_raw() for ring in rings} | {
        secret for ring in rings for secret in ring._secrets.values()
    }
    assert len(secrets) == 3 + 3
    assert [one for one in secrets if one in spoken or one.hex().encode() in spoken] == []


def test_what_a_party_writes_is_on_its_own_disk_and_for_its_user_alone(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    talk = Talk(*private())
    whole_run(talk, Concat(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "bank.safetensors",
        "shop.safetensors",
        "hospital.safetensors",
        "predicted.csv",
    }
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    weights = load_file(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(weights["missing"], talk.owners["bank"]._trained().bottom.missing.detach().numpy())
    lines = (tmp_path / "predicted.csv").read_text().splitlines()
    np.testing.assert_allclose(
        [float(line.split(",")[1]) for line in lines[1:]], talk.holder.predict("holdout"), rtol=1e-5
    )
