"""Split training against the same network in one process, written out with PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from vertical_toys import Columns, Talk, names, people, top_of

from fedray import seeds
from fedray.errors import ModelError, ProtocolError, RunError
from fedray.protection.wire import decode
from fedray.tasks.randomness import own_randomness
from fedray.vertical.bottom import Bottom
from fedray.vertical.fusion import Concat, Fusion, MaskedSum
from fedray.vertical.messages import EndEpoch, Forward
from fedray.vertical.models import OptimizerMaker, adam, mlp_of, sgd
from fedray.vertical.plans import AlignPlan, FitPlan

CPU = torch.device("cpu")


def central_losses(
    talk: Talk,
    tables: dict[str, Columns],
    labels: Columns,
    fuse: Callable[[list[torch.Tensor]], torch.Tensor],
    width: int,
    optimizer: OptimizerMaker,
    n_epochs: int,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the joint network, whose rows are joined by id here, in the label holder's order."""
    ids = [talk.holder._table.ids[row] for row in talk.holder._rows]
    joined = {}
    for name, one in tables.items():
        row_of = {str(person).strip().casefold(): row for row, person in enumerate(one["pid"])}
        joined[name] = torch.tensor([row_of.get(person, -1) for person in ids])
    label_of = {
        str(person).strip().casefold(): int(y) for person, y in zip(labels["pid"], labels["label"], strict=True)
    }
    y = torch.tensor([label_of[person] for person in ids])
    bottoms = nn.ModuleDict()
    for name in sorted(tables):
        with own_randomness(seeds.integer(0, "bottom", name), CPU):
            shape = tables[name]["x"].shape[1:]
            bottoms[name] = Bottom(mlp_of(5, (6,))(shape), shape)
    n_outputs = 1 if y.max() == 1 else int(y.max()) + 1
    with own_randomness(seeds.integer(0, "top"), CPU):
        top = top_of(width, n_outputs)
    step = optimizer([*bottoms.parameters(), *top.parameters()])
    n_train, losses = talk.holder._batches.n_train, []
    for epoch in range(1, n_epochs + 1):
        order = torch.from_numpy(seeds.generator(0, "vertical", epoch).permutation(n_train))
        total = 0.0
        for batch in order.split(32):
            embeddings = [bottoms[name](torch.from_numpy(tables[name]["x"]), joined[name][batch]) for name in bottoms]
            outputs = top(fuse(embeddings))
            loss = (
                nn.functional.binary_cross_entropy_with_logits(outputs.flatten(), y[batch].float())
                if n_outputs == 1
                else nn.functional.cross_entropy(outputs, y[batch])
            )
            step.zero_grad()
            loss.backward()
            step.step()
            total += loss.item() * len(batch)
        losses.append(total / n_train)
    return losses, bottoms.state_dict()


@pytest.mark.parametrize("optimizer", [sgd(0.5, momentum=0.9), adam(0.02)])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("fusion", "tolerance"), [(Concat(), 1e-5), (MaskedSum(), 1e-5), (MaskedSum(2.0**16), 2e-3)])
def test_split_training_is_training_of_the_joint_network(
    fusion: Fusion, tolerance: float, n_classes: int, optimizer: OptimizerMaker
) -> None:
    """Also where each owner lacks people; a clip of 2^16 leaves sums of two a step of 2^-13."""
    tables, labels = people(n_classes=n_classes, lacking=30)
    talk = Talk(tables, labels)
    talk.aligned(AlignPlan("allow", 0.25))
    talk.prepared(fusion)
    talk.begun(FitPlan(32, optimizer))
    losses = [talk.holder.epoch().loss for _ in range(4)]
    together, width = (lambda parts: torch.cat(parts, 1), 10) if isinstance(fusion, Concat) else (sum, 5)
    expected, bottoms = central_losses(talk, tables, labels, together, width, optimizer, 4)
    np.testing.assert_allclose(losses, expected, rtol=tolerance, atol=tolerance)
    assert losses[-1] < losses[0] - 0.02
    for name, owner in talk.owners.items():
        for key, value in owner._trained().bottom.state_dict().items():
            np.testing.assert_allclose(value, bottoms[f"{name}.{key}"], rtol=100 * tolerance, atol=10 * tolerance)


def test_the_learned_embedding_of_missing_rows_moves_at_the_owner_that_lacks_them() -> None:
    tables, labels = people(lacking=40)
    tables["shop"] = people()[0]["shop"]
    talk = Talk(tables, labels)
    talk.aligned(AlignPlan("allow"))
    talk.prepared()
    talk.begun()
    before = {name: owner._trained().bottom.missing.clone() for name, owner in talk.owners.items()}
    talk.holder.epoch()
    moved = {name: owner._trained().bottom.missing != before[name] for name, owner in talk.owners.items()}
    assert moved["bank"].all()
    assert not moved["shop"].any()


def test_a_run_repeats_to_the_bit_whatever_order_rows_are_in() -> None:
    tables, labels = people(lacking=20)
    reordered = {name: {key: one[key][::-1] for key in one} for name, one in tables.items()}
    seen = []
    for owners, answers in ((tables, labels), (reordered, {key: labels[key][::-1] for key in labels})):
        talk = Talk({name: dict(one) for name, one in owners.items()}, dict(answers))
        talk.aligned(AlignPlan("allow"))
        talk.prepared(MaskedSum())
        talk.begun()
        records = [talk.holder.epoch() for _ in range(2)]
        seen.append(
            ([(record.loss, record.holdout, record.leaks) for record in records], talk.holder.predict("holdout"))
        )
    assert seen[0][0] == seen[1][0]
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


def test_dropout_repeats_too() -> None:
    losses = []
    for _ in range(2):
        talk = Talk(*people())
        talk.aligned()
        talk.prepared(bottom=lambda shape: nn.Sequential(nn.Linear(shape[0], 5), nn.Dropout(0.5)))
        talk.begun()
        losses.append([talk.holder.epoch().loss for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_batch_costs_one_exchange_with_each_owner_and_no_message_is_only_a_gradient() -> None:
    talk = Talk(*people(100))
    talk.aligned(AlignPlan(holdout=0.2))
    talk.prepared()
    talk.begun(FitPlan(32, sgd(0.1)))
    talk.said.clear()
    record = talk.holder.epoch()
    assert record.n_batches == 3
    for owner in talk.owners:
        asked = [decode(message, Forward, EndEpoch) for name, message, _ in talk.said if name == owner]
        kinds = [one.purpose if isinstance(one, Forward) else "end" for one in asked]
        assert kinds == ["step", "step", "step", "end", "holdout"]
        assert [len(one.gradient) for one in asked] == [0, 32 * 5 * 4, 32 * 5 * 4, 16 * 5 * 4, 0]
    assert record.bytes_sent == sum(len(message) for _, message, _ in talk.said)
    assert record.bytes_received == sum(len(answer) for _, _, answer in talk.said)


def test_training_goes_on_where_it_was() -> None:
    """Two fits of one epoch with a stateless optimizer are one of two."""
    plan = FitPlan(32, sgd(0.3))
    losses = []
    for n_fits in (1, 2):
        talk = Talk(*people())
        talk.aligned()
        talk.prepared()
        found = []
        for _ in range(n_fits):
            talk.begun(plan)
            found += [talk.holder.epoch().loss for _ in range(2 // n_fits)]
        losses.append(found)
    assert losses[0] == losses[1]


def test_numbers_are_regressed_and_the_figure_is_the_mean_squared_error() -> None:
    tables, labels = people(150)
    x = {str(one).strip().casefold(): row for one, row in zip(tables["bank"]["pid"], tables["bank"]["x"], strict=True)}
    labels = {"pid": labels["pid"], "y": np.array([x[str(one).strip().casefold()][0] * 2.0 for one in labels["pid"]])}
    talk = Talk(tables, labels)
    talk.aligned()
    talk.prepared()
    talk.begun(FitPlan(16, adam(0.02)))
    records = [talk.holder.epoch() for _ in range(30)]
    assert records[-1].holdout["loss"] < 0.2 * records[0].holdout["loss"]
    assert set(records[-1].holdout) == {"loss"}
    predicted = talk.holder.predict("holdout")
    truth = talk.holder._truth[talk.holder._batches.n_train :].numpy()
    assert np.mean((predicted - truth) ** 2) == pytest.approx(records[-1].holdout["loss"], rel=1e-5)
    assert len(names(150)) == 150 == len(predicted) + talk.holder._batches.n_train


def test_a_batch_of_one_row_for_batch_statistics_is_one_clear_error() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    bottom, features = Bottom(network, (2,)).train(), torch.zeros(3, 2)
    assert bottom(features, torch.tensor([1, 2])).shape == (2, 4)
    for rows in ([1], [1, -1]):
        with pytest.raises(ModelError, match=r"a batch with one row(.|\n)*another batch_size"):
            bottom(features, torch.tensor(rows))
    assert bottom.eval()(features, torch.tensor([1])).shape == (1, 4)


def test_one_row_for_the_top_models_batch_statistics_is_the_same_error() -> None:
    talk = Talk(*people(150))
    talk.aligned()
    talk.prepared(top=lambda width, n_outputs: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, n_outputs)))
    talk.begun(FitPlan(talk.holder._batches.n_train - 1))
    with pytest.raises(ModelError, match="a batch with one row"):
        talk.holder.epoch()


def test_after_an_epoch_that_was_cut_off_a_new_fit_starts_afresh() -> None:
    talk = Talk(*people())
    talk.aligned()
    talk.prepared()
    talk.begun(FitPlan(32, sgd(1e30)))
    with pytest.raises(ProtocolError, match="not finite"):
        talk.holder.epoch()
    talk.prepared()
    talk.begun(FitPlan(32, sgd(0.1)))
    losses = [talk.holder.epoch().loss for _ in range(5)]
    assert losses[-1] < losses[0] < 1


def test_a_loss_that_is_not_finite_ends_the_run_and_says_so() -> None:
    tables, _ = people()
    talk = Talk(tables, {"pid": tables["bank"]["pid"], "y": np.full(120, 1e30)})
    talk.aligned()
    talk.prepared()
    talk.begun(FitPlan(64, sgd(1e10)))
    with pytest.raises(RunError, match="lower the learning rate"):
        talk.holder.epoch()
