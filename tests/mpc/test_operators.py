"""Every operator of the parties against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedray.mpc.local import LocalParties
from fedray.mpc.operators import OPERATORS

X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(4, 3, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COLUMNS = functional.unfold(X, (3, 2), padding=(1, 0), stride=(2, 1))
ROWS = torch.tensor([1, 0, 1])

CASES: list[tuple[str, list[Any], dict[str, Any], Tensor]] = [
    ("add", [X, X[:1]], {}, X + X[:1]),
    ("add", [X, 1.5], {}, X + 1.5),
    ("subtract", [2, X], {}, 2 - X),
    ("negate", [X], {}, -X),
    ("multiply", [X, X[..., :1]], {}, X * X[..., :1]),
    ("multiply", [X, 0.3], {}, X * 0.3),
    ("multiply", [torch.tensor(3), X], {}, 3 * X),
    ("matmul", [X, X.transpose(2, 3)], {}, X @ X.transpose(2, 3)),
    ("matmul", [torch.ones(4, 6, dtype=torch.float64) / 3, X], {}, torch.ones(4, 6, dtype=torch.float64) / 3 @ X),
    ("convolve", [X, W], {}, functional.conv2d(X, W)),
    (
        "convolve",
        [X, W],
        {"stride": (2, 1), "padding": (1, 0)},
        functional.conv2d(X, W, stride=(2, 1), padding=(1, 0)),
    ),
    ("sum", [X], {}, X.sum()),
    ("sum", [X], {"dim": (0, 2), "keepdim": True}, X.sum((0, 2), keepdim=True)),
    ("reshape", [X, (6, -1)], {}, X.reshape(6, -1)),
    ("permute", [X, (1, 0, 3, 2)], {}, X.permute(1, 0, 3, 2)),
    ("expand", [X[:1], (7, 3, 6, 5)], {}, X[:1].expand(7, 3, 6, 5)),
    ("index", [X, (0, slice(1, None), None, 2)], {}, X[0, 1:, None, 2]),
    ("index", [X, ROWS], {}, X[ROWS]),
    ("put", [X[ROWS], ROWS, X.shape], {}, torch.zeros_like(X).index_add(0, ROWS, X[ROWS])),
    ("put", [X[0, 1], (0, 1), X.shape], {}, torch.zeros_like(X).index_put((torch.tensor(0), torch.tensor(1)), X[0, 1])),
    ("concatenate", [[X, X[:, :1]], 1], {}, torch.cat([X, X[:, :1]], 1)),
    ("pad", [X, (1, 0, 2, 3)], {}, functional.pad(X, (1, 0, 2, 3))),
    ("unfold", [X, (3, 2), (2, 1), (1, 0)], {}, COLUMNS),
    (
        "fold",
        [COLUMNS, (6, 5), (3, 2), (2, 1), (1, 0)],
        {},
        functional.fold(COLUMNS, (6, 5), (3, 2), 1, (1, 0), (2, 1)),
    ),
    ("is_negative", [X], {}, (X < 0).double()),
    ("exp", [X], {}, X.exp()),
    ("log", [X.abs() + 0.1], {}, (X.abs() + 0.1).log()),
    ("reciprocal", [X.abs() + 0.1], {}, 1 / (X.abs() + 0.1)),
    ("sigmoid", [X], {}, X.sigmoid()),
    ("inverse_square_root", [X.abs() + 0.1], {}, (X.abs() + 0.1).rsqrt()),
]


@pytest.fixture(scope="module")
def parties() -> Iterator[LocalParties]:
    with LocalParties() as started:
        yield started


def shared(parties: LocalParties, arg: Any) -> Any:
    if isinstance(arg, list):
        return [shared(parties, each) for each in arg]
    return parties.share(arg) if isinstance(arg, Tensor) and not is_public(arg) else arg


def is_public(arg: Any) -> bool:
    """An index, a whole factor, or the matrix of thirds."""
    return bool(not arg.is_floating_point() or torch.equal(arg, torch.ones(4, 6, dtype=torch.float64) / 3))


@pytest.mark.parametrize(("operator", "args", "options", "expected"), CASES, ids=lambda case: str(case)[:20])
def test_an_operator_gives_what_torch_gives(
    parties: LocalParties, operator: str, args: list[Any], options: dict[str, Any], expected: Tensor
) -> None:
    found = parties.reveal(parties.run(operator, *shared(parties, args), **options))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4, rtol=3e-4)


def test_every_operator_is_tried_here() -> None:
    assert {operator for operator, *_ in CASES} == set(OPERATORS)


def test_whole_and_fixed_point_numbers_meet_in_sums_and_concatenations(parties: LocalParties) -> None:
    x = torch.tensor([1.25, -2.5], dtype=torch.float64)
    shared_x = parties.share(x)
    sign = parties.run("is_negative", shared_x)
    assert parties.reveal(parties.run("add", sign, shared_x)).tolist() == [1.25, -1.5]
    assert parties.reveal(parties.run("concatenate", [sign, shared_x])).tolist() == [0, 1, 1.25, -2.5]
    assert parties.reveal(parties.run("multiply", sign, sign)).tolist() == [0, 1]


def test_empty_tensors_pass(parties: LocalParties) -> None:
    nothing = parties.share(torch.zeros(0, 3))
    assert parties.reveal(parties.run("matmul", nothing, parties.share(torch.ones(3, 2)))).shape == (0, 2)
    assert parties.reveal(parties.run("is_negative", nothing)).shape == (0, 3)


def test_a_long_chain_of_products_keeps_its_precision(parties: LocalParties) -> None:
    """A hundred truncations: each errs by less than a unit, and is right on average."""
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)
    ref, factor = parties.share(x), parties.share(torch.full((400,), 0.99, dtype=torch.float64))
    for _ in range(100):
        ref = parties.run("multiply", ref, factor)
    assert (parties.reveal(ref) - x * 0.99**100).abs().max() < 100 * 2 * 2.0**-20
