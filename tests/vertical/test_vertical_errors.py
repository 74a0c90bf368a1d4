"""Every wrong configuration, table or message is one clear error, before any work where it can be known before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vertical_toys import Talk, people, ready

import fedray
from fedray.errors import ConfigError, DataError, FedrayError, ModelError, ProtocolError, RunDirectoryError
from fedray.protection.wire import decode, encode
from fedray.vertical import LabelPrivacy, head, mlp, mlp_of, sgd
from fedray.vertical.feature_owner import FeatureOwner
from fedray.vertical.messages import Embedding, EndEpoch, Forward, Hello, Scores
from fedray.vertical.session import at
from fedray.vertical.setting import Setting
from fedray.vertical.tables import open_table


def vertical(tmp_path: Path, **changes: Any) -> fedray.Vertical:
    owners, labels = people(60)
    settings = {"owners": owners, "labels": ("hospital", labels), "id": "pid", "in_process": True}
    return fedray.Vertical(**{**settings, "directory": tmp_path / "run", **changes})


def ready_made(fed: fedray.Vertical) -> fedray.Vertical:
    fed.align()
    fed.models(dict.fromkeys(("bank", "shop"), mlp_of(4)), head(4), "masked_sum")
    return fed


def test_the_sketch_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    owners, labels = people(80)
    fed = fedray.Vertical(owners=owners, labels=("hospital", labels), id="pid", in_process=True)
    found = fed.align()
    fed.models(bottoms={"bank": mlp(4, 32), "shop": mlp(3, 32)}, top=head(32), fuse="masked_sum")
    history = fed.fit(epochs=3, batch_size=256, optimizer=sgd(0.1))
    assert len(fed.predict("holdout")) == found.n_holdout == 16
    assert "norm attack" in str(fed.leakage_report())
    assert [record.epoch for record in history] == [1, 2, 3]
    assert len((fed.directory / "history.jsonl").read_text().splitlines()) == 3
    assert "hospital" in (fed.directory / "vertical.json").read_text()
    fed.close()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"owners": {}}, "no feature owners"),
        ({"labels": ("bank", {})}, "the name 'bank' for the label holder and for an owner"),
        ({"placement": {"bnak": {}}}, "placement of bnak"),
        ({"identities": {"bank": "00" * 32}}, "identities without hospital, shop"),
        ({"identities": dict.fromkeys(("bank", "shop", "hospital"), "00")}, "identities.bank is no public key"),
    ],
)
def test_names_are_checked_before_anything_is_opened(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        vertical(tmp_path, **changes)


def test_a_directory_that_holds_a_run_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").touch()
    with pytest.raises(RunDirectoryError):
        vertical(tmp_path)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        (lambda fed: fed.models({}, head(4)), "align()"),
        (lambda fed: fed.fit(), "models()"),
        (lambda fed: fed.predict(), "models()"),
        (lambda fed: fed.save("x"), "models()"),
        (lambda fed: fed.leakage_report(), "fit()"),
    ],
)
def test_a_step_that_is_too_early_says_what_comes_first(
    tmp_path: Path, step: Callable[[fedray.Vertical], Any], call: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        step(vertical(tmp_path))
    assert call in str(caught.value)


@pytest.mark.parametrize(
    ("bottoms", "found"),
    [(("bank",), "bottoms without shop"), (("bank", "shop", "club"), "bottoms of club")],
)
def test_every_owner_needs_a_bottom_model_and_nobody_else(tmp_path: Path, bottoms: tuple[str, ...], found: str) -> None:
    fed = vertical(tmp_path)
    fed.align()
    with pytest.raises(ConfigError, match=found):
        fed.models(dict.fromkeys(bottoms, mlp_of(4)), head(4))


@pytest.mark.parametrize(
    ("bottom", "top", "fuse", "error", "found"),
    [
        (mlp_of(4), head(4), "mean", ConfigError, "fuse='mean'"),
        (mlp(9, 4), head(4), "masked_sum", ModelError, "at 'bank'.*cannot take rows of shape \\(4,\\)"),
        (mlp_of(4), head(4), "concat", ModelError, "a top model that cannot take rows of shape \\(8,\\)"),
        (mlp_of(4), head(4, 3), "masked_sum", ModelError, "2 classes"),
        (nn.Flatten(0), head(4), "concat", ModelError, "flatten its output"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, bottom: Any, top: Any, fuse: str, error: type[FedrayError], found: str
) -> None:
    fed = vertical(tmp_path)
    fed.align()
    with pytest.raises(error, match=found):
        fed.models(dict.fromkeys(("bank", "shop"), bottom), top, fuse)


def test_modules_that_are_handed_over_are_copied_and_stay_as_they_were(tmp_path: Path) -> None:
    fed = vertical(tmp_path)
    fed.align()
    own, top = mlp(4, 4), head(4)
    before = [parameter.clone() for module in (own, top) for parameter in module.parameters()]
    fed.models({"bank": own, "shop": mlp(3, 4)}, top, "masked_sum")
    fed.fit(epochs=1)
    after = [parameter for module in (own, top) for parameter in module.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    fed = ready_made(vertical(tmp_path))
    with pytest.raises(ConfigError, match="batch size"):
        fed.fit(batch_size=0)
    with pytest.raises(ConfigError, match="part 'test'"):
        fed.predict("test")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="aligned already"):
        fed.align()
    with pytest.raises(ConfigError, match="rename it"):
        fed.write_predictions("predicted.txt")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        fed.save(tmp_path / "file")
    fed.fit(epochs=1)
    with pytest.raises(ConfigError, match="same as before"):
        fed.fit(label_dp=LabelPrivacy(1.0))


def test_less_than_one_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 epochs"):
        ready_made(vertical(tmp_path)).fit(epochs=0)


@pytest.mark.parametrize("maker", [nn.Linear, lambda _shape: None])
def test_what_makes_no_module_is_one_clear_error(tmp_path: Path, maker: Any) -> None:
    fed = vertical(tmp_path)
    fed.align()
    with pytest.raises(ModelError, match="a bottom model"):
        fed.models({"bank": maker, "shop": mlp_of(4)}, head(4))


def test_rows_of_several_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="column 'x' with rows of several lengths"):
        open_table({"pid": ["a", "b"], "x": [[1, 2], [3]]}, "pid", "bank")


def test_a_closed_run_says_so(tmp_path: Path) -> None:
    with ready_made(vertical(tmp_path)) as fed:
        pass
    with pytest.raises(ConfigError, match="a run that was closed"):
        fed.fit()


IDS = ["a", "b"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({"x": [1, 2]}, "a column 'pid'"),
        ({"pid": ["a", " A"], "x": [1, 2]}, "the same id"),
        ({"pid": IDS, "x": [1]}, "columns of 'bank' with 1, 2 rows"),
        ({"pid": [], "x": []}, "columns of 'bank' with 0 rows"),
        ({"pid": IDS}, "without features"),
        ({"pid": IDS, "x": ["u", "v"]}, "a column 'x' of"),
        ({"pid": IDS, "x": [1.0, np.nan]}, "not finite"),
        ("missing.csv", "cannot be read"),
        ("table.xls", "a .csv or .parquet file"),
        (lambda: 7, "a int as the data of 'bank'"),
    ],
)
def test_a_table_that_is_unfit_names_its_party_and_quotes_no_row(source: Any, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        open_table(source, "pid", "bank").features()
    assert "'u'" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"pid": IDS}, "none besides the id"),
        ({"pid": IDS, "u": [0, 1], "v": [0, 1]}, "u, v besides the id"),
        ({"pid": IDS, "y": [1, 1]}, "one class"),
        ({"pid": IDS, "y": [0.5, np.nan]}, "missing somewhere"),
        ({"pid": IDS, "y": np.array(["a", 3], object)}, "several types"),
        ({"pid": IDS, "y": np.zeros((2, 2))}, "one value a row"),
        ({"pid": IDS, "y": np.array(["2020-01-01"] * 2, "datetime64[D]")}, "datetime64"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, found: str) -> None:
    with pytest.raises(DataError, match=found):
        Talk(people(10)[0], labels).aligned()


def test_a_column_that_does_not_say_who_is_held_out_is_refused() -> None:
    owners, labels = people(20)
    with pytest.raises(DataError, match="true and false"):
        Talk(owners, {**labels, "fold": np.arange(20)}, target="label").holder.align(
            fedray.vertical.plans.AlignPlan(holdout="fold")
        )


def test_every_kind_of_source_gives_the_same_table(tmp_path: Path) -> None:
    """Ids of a CSV keep their zeros; several columns stand side by side; one of more axes keeps its shape."""
    frame = pd.DataFrame({"pid": ["007", "010"], "a": [1.5, 2.5], "b": [3, 4]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    columns = {name: frame[name].to_numpy() for name in frame}
    files = [tmp_path / "t.csv", str(tmp_path / "t.parquet")]
    sources = [frame, columns, *files, lambda: frame, lambda: files[0]]
    for source in sources:
        table = open_table(source, "pid", "bank")
        assert table.ids == ["007", "010"]
        np.testing.assert_array_equal(table.features(), [[1.5, 3], [2.5, 4]])
    images = open_table({"pid": IDS, "image": np.ones((2, 8, 4))}, "pid", "bank").features()
    assert images.shape == (2, 8, 4)


def test_an_error_says_at_which_party_once(tmp_path: Path) -> None:
    error = DataError("a fault", "none", "mend it")
    assert at("bank", error).found == "at 'bank': a fault"
    assert at("bank", at("bank", error)).found == "at 'bank': a fault"
    with pytest.raises(DataError, match="at 'bank'"):
        vertical(tmp_path, owners={"bank": {"pid": ["a", "a"], "x": [1, 2]}}).align()


def unfit_messages() -> list[tuple[bytes, str]]:
    forward = Forward(10**6, "step", 9, 0, 32, b"")
    return [
        (b"", "no protocol message"),
        (b"fedray\x01", "malformed"),
        (encode(forward)[:-1], "malformed"),
        (encode(forward) + b"\x00", "malformed"),
        (encode(Embedding(b"")), "malformed"),
        (encode(Forward(0, "step", 1, 0, 32, b"")), "number 0"),
        (encode(Forward(10**6, "step", 1, 99, 32, b"")), "no rows"),
        (encode(Forward(10**6, "step", 1, 0, 32, bytes(8))), "a gradient of 8 bytes"),
        (encode(EndEpoch(bytes(4))), "a gradient of 4 bytes"),
        (encode(Hello(bytes(16), FeatureOwnerIntroduction, ["bank", "shop"])), "a second greeting"),
    ]


FeatureOwnerIntroduction = fedray.vertical.keys.Keyring("x", {}).introduction(bytes(16))


@pytest.mark.parametrize(("message", "found"), unfit_messages())
def test_an_owner_refuses_what_it_should_not_answer_and_goes_on(message: bytes, found: str) -> None:
    talk = ready()
    with pytest.raises(ProtocolError, match=found):
        talk.owners["bank"].answer(message)
    if b"Forward" not in message:
        assert talk.holder.epoch().loss > 0


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_make_an_owner_raise_anything_but_a_protocol_error(data: bytes, is_prefixed: bool) -> None:
    with pytest.raises(ProtocolError):
        OWNER.answer(b"fedray\x01" + data if is_prefixed else data)


SETTING = Setting("toy", ("bank", "shop"), "hospital", "pid", None, 0, {}, Path("nowhere"))
OWNER = FeatureOwner("bank", SETTING, {"pid": IDS, "x": [1, 2]})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda message: message[:-1], "from 'shop': a malformed message"),
        (lambda message: b"garbage", "from 'shop': what is no protocol message"),
        (lambda message: encode(Embedding(b"1234")), "an embedding of 'shop' of 4 bytes"),
        (lambda message: encode(Scores(b"", b"")), "from 'shop': a malformed message"),
        (lambda message: encode(Embedding(np.full(160, np.nan, "<f4").tobytes())), "'shop' that is not finite"),
    ],
)
def test_the_label_holder_names_the_owner_that_sends_garbage(change: Callable[[bytes], bytes], found: str) -> None:
    talk = ready()
    shop = talk.owners["shop"]
    answer = shop.answer
    shop.answer = lambda message: change(answer(message))  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match=found):
        talk.holder.epoch()


def test_scores_of_another_length_are_refused() -> None:
    talk = ready()
    shop = talk.owners["shop"]
    answer = shop.answer

    def shortened(message: bytes) -> bytes:
        found = answer(message)
        is_end = isinstance(decode(message, Forward, EndEpoch), EndEpoch)
        return encode(Scores(bytes(4), bytes(4))) if is_end else found

    shop.answer = shortened  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="scores of 'shop'"):
        talk.holder.epoch()


def test_a_gradient_that_is_not_finite_is_refused_by_the_owner() -> None:
    talk = ready()
    bank = talk.owners["bank"]
    bank.answer(encode(Forward(1, "step", 1, 0, 32, b"")))
    with pytest.raises(ProtocolError, match="not finite"):
        bank.answer(encode(EndEpoch(np.full(160, np.inf, "<f4").tobytes())))


def test_importing_vertical_parts_of_fedray_loads_no_ray() -> None:
    import subprocess
    import sys

    code = "import sys, fedray.vertical, fedray.vertical_runs; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
