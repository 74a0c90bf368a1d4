"""Torch's functions on shares, values and gradients, held against torch: with parties in the clear, and with shares."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_parties import PlainParties
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedray.mpc import approximations
from fedray.mpc.approximations import LARGEST_POWER, LEAST_POWER
from fedray.mpc.engine import Parties
from fedray.mpc.local import LocalParties
from fedray.mpc.registry import FUNCTIONS, PRIMITIVES, NoSecureVersion, supported
from fedray.mpc.ring import limit
from fedray.mpc.sharing import share
from fedray.mpc.tensor import SecureTensor

Function = Callable[..., Any]


def tolerance(parties: Parties) -> float:
    return 1e-5 if isinstance(parties, PlainParties) else 3e-3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).abs() + 0.5


A, B, P = normal(3, 4), normal(3, 4, seed=1), positive(3, 4)
MATRIX, ROW, BATCH = normal(4, 5), normal(4), normal(2, 3, 4)
IMAGES, FILTERS = normal(2, 3, 6, 6), normal(4, 3, 3, 3, seed=1)
MASK, PLACES = A > 0.3, torch.tensor([2, 0, 2])
CLASSES, ONE_HOT = torch.tensor([1, 3, 0]), F.one_hot(torch.tensor([1, 3, 0]), 4).float()
LABELS = (B > 0).float()

ONE: dict[str, tuple[Function, Tensor]] = {
    "plus a number": (lambda x: 2 + x + 0.5, A),
    "minus a number": (lambda x: (1.5 - x) - 0.25, A),
    "plus public rows": (lambda x: x + ROW, A),
    "public rows minus": (lambda x: ROW - x, A),
    "times a number": (lambda x: 3 * x * 0.3, A),
    "times a small number": (lambda x: x * 1e-3, A * 100),
    "times a public tensor": (lambda x: B * x, A),
    "over a number": (lambda x: x / 3, A),
    "over a public tensor": (lambda x: x / P, A),
    "a number over": (lambda x: 2 / x, P),
    "a public tensor over": (lambda x: B / x, P),
    "negative": (lambda x: -x, A),
    "square": (torch.square, A),
    "cube": (lambda x: x**3, A),
    "fourth power": (lambda x: x.pow(4), A),
    "sum": (torch.sum, A),
    "sum over": (lambda x: x.sum((0, 2), keepdim=True), BATCH),
    "mean": (lambda x: x.mean(), A),
    "mean over": (lambda x: x.mean(-1), BATCH),
    "public matrix": (lambda x: x @ MATRIX, A),
    "after a public matrix": (lambda x: B.t() @ x, A),
    "public batch": (lambda x: BATCH @ x, MATRIX),
    "public batch transposed": (lambda x: torch.bmm(BATCH, x), BATCH.mT),
    "public vector": (lambda x: x @ ROW, A),
    "after a public vector": (lambda x: ROW @ x, MATRIX),
    "to a public matrix": (lambda x: A @ x, ROW),
    "public batch after a vector": (lambda x: x @ BATCH, normal(3)),
    "public batch and vector": (lambda x: BATCH @ x, normal(4)),
    "linear, then square": (lambda x: 2 * x + x * x, A),
    "square, then linear": (lambda x: x * x + 2 * x, A),
    "dot": (lambda x: torch.dot(ROW, x), normal(4, seed=2)),
    "reshape": (lambda x: x.reshape(2, 6), A),
    "view": (lambda x: x.view(-1), A),
    "flatten": (lambda x: torch.flatten(x, 1), BATCH),
    "squeeze": (lambda x: x.squeeze(1).unsqueeze(0), normal(3, 1, 2)),
    "transpose": (lambda x: x.transpose(0, 2), BATCH),
    "permute": (lambda x: x.permute(2, 0, 1), BATCH),
    "movedim": (lambda x: x.movedim(0, -1), BATCH),
    "T": (lambda x: x.T, A),
    "t": (torch.t, A),
    "expand": (lambda x: x.expand(5, -1, -1), A),
    "one place": (lambda x: x[1], A),
    "range": (lambda x: x[:, 1:3], A),
    "every other": (lambda x: x[::2, -1], A),
    "new dimension": (lambda x: x[..., None, :2], A),
    "public places": (lambda x: x[PLACES], A),
    "public places of two": (lambda x: x[:, PLACES, torch.tensor([1, 1, 0])], BATCH),
    "public mask": (lambda x: x[MASK], A),
    "index_select": (lambda x: x.index_select(1, PLACES), A),
    "split": (lambda x: torch.split(x, 3, 1)[0] * 2, A),
    "chunk": (lambda x: x.chunk(2, dim=-1)[1], A),
    "unbind": (lambda x: x.unbind(1)[2], A),
    "rows": (lambda x: sum(row * (place + 1) for place, row in enumerate(x)), A),
    "cat with public": (lambda x: torch.cat([x, B, x], 1), A),
    "stack": (lambda x: torch.stack([x, B]), A),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), A),
    "clone": (lambda x: x.clone() * x.detach(), A),
    "to double": (lambda x: x.double() * 2, A),
    "relu": (F.relu, A),
    "relu method": (lambda x: x.relu(), A),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), A),
    "relu6": (F.relu6, A * 6),
    "hardtanh": (F.hardtanh, A),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), A),
    "clamp from": (lambda x: x.clamp(min=0.1), A),
    "clamp to": (lambda x: torch.clamp(x, max=0.1), A),
    "abs": (torch.abs, A),
    "maximum with public": (lambda x: torch.maximum(x, B), A),
    "minimum with public": (lambda x: torch.minimum(B, x), A),
    "where public": (lambda x: torch.where(MASK, x, B), A),
    "where shared": (lambda x: torch.where(x > 0.2, x * 2, B), A),
    "masked_fill": (lambda x: x.masked_fill(MASK, 3.0), A),
    "max": (lambda x: x.max(), A),
    "max over": (lambda x: x.max(1).values, A),
    "max of odd": (lambda x: x.max(0, keepdim=True).values, A),
    "min over": (lambda x: x.min(dim=-1)[0], A),
    "amax": (lambda x: x.amax(1), A),
    "amin": (lambda x: torch.amin(x, -2, keepdim=True), BATCH),
    "exp": (torch.exp, A),
    "log": (torch.log, P),
    "reciprocal": (torch.reciprocal, P),
    "sqrt": (torch.sqrt, P),
    "rsqrt": (torch.rsqrt, P),
    "sigmoid": (torch.sigmoid, A * 3),
    "tanh": (torch.tanh, A * 2),
    "silu": (F.silu, A),
    "softmax": (lambda x: F.softmax(x, 1), A * 3),
    "softmax method": (lambda x: x.softmax(-1), A),
    "log_softmax": (lambda x: F.log_softmax(x, dim=0), A),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), IMAGES),
    "max_pool2d padded": (lambda x: F.max_pool2d(x, 3, 2, 1), IMAGES),
    "max_pool2d overlapping": (lambda x: F.max_pool2d(x, (3, 2), stride=(1, 2)), IMAGES),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), IMAGES),
    "avg_pool2d padded": (lambda x: F.avg_pool2d(x, 3, 2, 1), IMAGES),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), IMAGES),
    "public filters": (lambda x: F.conv2d(x, FILTERS, normal(4), padding=1), IMAGES),
    "public images": (lambda x: F.conv2d(IMAGES, x, stride=2), FILTERS),
    "unfold": (lambda x: F.unfold(x, 3, stride=2), IMAGES),
    "fold": (lambda x: F.fold(x, (6, 6), 3), normal(1, 18, 16)),
    "dropout outside of training": (lambda x: F.dropout(x, 0.5, training=False), A),
    "batch_norm": (
        lambda x: F.batch_norm(x, normal(3), positive(3), normal(3, seed=3), normal(3, seed=4), eps=1e-3),
        IMAGES,
    ),
    "cross_entropy": (lambda x: F.cross_entropy(x, CLASSES), A * 2),
    "cross_entropy summed": (lambda x: F.cross_entropy(x, ONE_HOT * 0.8 + 0.05, reduction="sum"), A * 2),
    "nll_loss": (lambda x: F.nll_loss(F.log_softmax(x, 1), CLASSES), A * 2),
    "mse_loss": (lambda x: F.mse_loss(x, B), A),
    "binary_cross_entropy_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, LABELS), A * 2),
}

TWO: dict[str, tuple[Function, Tensor, Tensor]] = {
    "add": (torch.add, A, B),
    "add times": (lambda x, y: torch.add(x, y, alpha=2), A, B),
    "subtract": (lambda x, y: x - y, A, ROW),
    "multiply": (torch.mul, A, ROW),
    "divide": (lambda x, y: x / y, A, P),
    "divide by negatives": (torch.div, A, -P),
    "matmul": (torch.matmul, A, MATRIX),
    "batches": (lambda x, y: x @ y, BATCH, BATCH.mT),
    "batch and matrix": (torch.matmul, BATCH, MATRIX),
    "vectors": (torch.matmul, ROW, normal(4, seed=5)),
    "matrix and vector": (torch.mv, A, ROW),
    "linear": (F.linear, A, MATRIX.t()),
    "linear of batches": (F.linear, BATCH, MATRIX.t()),
    "conv2d": (lambda x, y: F.conv2d(x, y, stride=(2, 1), padding=(1, 0)), IMAGES, FILTERS),
    "cat": (lambda x, y: torch.cat([x, y]), A, B),
    "maximum": (torch.maximum, A, B),
    "minimum": (torch.minimum, A, B),
    "max of two": (torch.max, A, B),
    "where": (lambda x, y: torch.where(x > y, x, y * 2), A, B),
    "mse_loss": (F.mse_loss, A, B),
}


def cotangent(value: Tensor) -> Tensor:
    return normal(*value.shape, seed=9)


def opened(gradient: Tensor | None) -> Tensor:
    """A gradient that depends on nothing shared is public."""
    assert gradient is not None
    return gradient.reveal() if isinstance(gradient, SecureTensor) else gradient.double()


def compare(function: Function, tensors: tuple[Tensor, ...], parties: Parties) -> None:
    """Value and gradients, on shares and in double precision."""
    shared = [share(tensor, parties).requires_grad_() for tensor in tensors]
    plain = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found, expected = function(*shared), function(*plain)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.detach().reveal(), expected.detach().double(), atol=tolerance(parties), rtol=1e-3)
    (found * cotangent(expected)).sum().backward()
    (expected * cotangent(expected)).sum().backward()
    for one, other in zip(shared, plain, strict=True):
        torch.testing.assert_close(opened(one.grad), opened(other.grad), atol=tolerance(parties), rtol=1e-3)


@pytest.mark.parametrize("name", ONE)
def test_a_function_of_one_tensor_and_its_gradient_are_torchs(name: str, parties: Parties) -> None:
    function, tensor = ONE[name]
    compare(function, (tensor,), parties)


@pytest.mark.parametrize("name", TWO)
def test_a_function_of_two_tensors_and_its_gradients_are_torchs(name: str, parties: Parties) -> None:
    function, *tensors = TWO[name]
    compare(function, tuple(tensors), parties)


EXACT: dict[str, Function] = {
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "> number": lambda x, y: x > 1,
    "number >": lambda x, y: 1 > x,  # noqa: SIM300
    "and": lambda x, y: (x > 0) & (y > 0),
    "or": lambda x, y: torch.logical_or(x > 0, y > 0),
    "not": lambda x, y: ~(x > 0),
    "count": lambda x, y: (x > y).sum(),
    "argmax": lambda x, y: x.argmax(1),
    "argmax of all": lambda x, y: torch.argmax(y),
    "argmin": lambda x, y: y.argmin(0, keepdim=True),
    "place of max": lambda x, y: x.max(1).indices,
    "place of min": lambda x, y: x.min(1).indices,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("other", ["shared", "public"])
def test_comparisons_and_places_are_exact_also_of_values_that_are_alike(
    name: str, other: str, parties: Parties
) -> None:
    left, right = torch.randint(-2, 3, (2, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    shared = share(right, parties)
    found = EXACT[name](share(left, parties), right if other == "public" and name not in OF_SECOND else shared).reveal()
    expected = EXACT[name](left, right)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


OF_SECOND = ("argmax of all", "argmin")
"""Where the second tensor alone decides."""


def test_a_loss_of_shared_labels_is_that_of_public_ones(parties: Parties) -> None:
    scores = share(A, parties)
    found = F.cross_entropy(scores, share(ONE_HOT, parties)).reveal()
    torch.testing.assert_close(found, F.cross_entropy(A, CLASSES).double(), atol=1e-3, rtol=0)
    found = F.binary_cross_entropy_with_logits(scores, share(LABELS, parties)).reveal()
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(A, LABELS).double(), atol=1e-3, rtol=0)


def test_training_takes_no_logarithm_unless_the_value_of_the_loss_is_asked_for() -> None:
    parties = PlainParties()
    scores = share(A, parties).requires_grad_()
    loss = F.cross_entropy(scores, CLASSES)
    loss.backward()
    assert parties.called.count("exp") == 1
    assert "log" not in parties.called
    loss.detach().reveal()
    loss.detach().reveal()
    assert parties.called.count("log") == 1


def test_relu_compares_once_for_value_and_gradient() -> None:
    parties = PlainParties()
    F.relu(share(A, parties).requires_grad_()).sum().backward()
    assert parties.called.count("is_negative") == 1


def test_a_mean_of_many_values_keeps_its_digits() -> None:
    values = positive(100, 300)
    with LocalParties() as parties:
        found = share(values, parties).mean()
        assert abs(found.reveal() / values.double().mean() - 1) < 1e-5
        small = share(values, parties) * 1e-5
        assert (small.sum().reveal() / (values.double().sum() * 1e-5) - 1).abs() < 0.05


def test_what_the_page_says_of_composed_approximations_holds() -> None:
    wide = torch.linspace(-40, 40, 2001).double()
    roots = torch.logspace(-8, 12, 500, base=2).double()
    with LocalParties() as parties, torch.no_grad():
        shared = share(wide, parties)
        assert (torch.tanh(shared).reveal() - wide.tanh()).abs().max() < 2e-4
        assert (F.silu(shared).reveal() - F.silu(wide)).abs().max() < 1e-4 * 40
        for n_classes, scale in product((2, 10, 100, 4000), (0.3, 4, 30)):
            scores = normal(4, n_classes) * scale
            found = F.softmax(share(scores, parties), 1).reveal()
            assert (found - F.softmax(scores.double(), 1)).abs().max() < 1e-4 + 4e-6 * n_classes
        assert (torch.sqrt(share(roots, parties)).reveal() / roots.sqrt() - 1).abs().max() < 1.1e-4


REFUSED: dict[str, tuple[Function, str]] = {
    "erf": (torch.erf, "erf, which"),
    "gelu": (F.gelu, "gelu, which"),
    "cumsum": (lambda x: x.cumsum(0), "cumsum, which"),
    "sort": (lambda x: x.sort(), "sort, which"),
    "item": (lambda x: x.item(), "item, which"),
    "branch": (lambda x: 1 if x else 2, "__bool__, which"),
    "numpy": (lambda x: x.numpy(), "numpy, which"),
    "tolist": (lambda x: x.tolist(), "tolist, which"),
    "power": (lambda x: x**0.5, r"pow by 0\.5, which"),
    "dropout": (F.dropout, "dropout in training, which"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "statistics of a batch"),
    "dilation": (lambda x: F.conv2d(IMAGES, x.view(1, 3, 2, 2), dilation=2), "a window with dilation"),
    "groups": (lambda x: F.conv2d(IMAGES, x.view(3, 1, 2, 2), groups=3), "convolution with groups"),
    "label smoothing": (lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1), "label_smoothing, which"),
    "class weights": (lambda x: F.cross_entropy(x, CLASSES, weight=ROW), "weight, which"),
    "no reduction": (lambda x: F.mse_loss(x, A, reduction="none"), "reduction='none', which"),
    "shared index": (lambda x: A[x.bool()], "indexing by a shared tensor|a conversion to torch.bool"),
    "pooling to a size": (lambda x: F.adaptive_avg_pool2d(x[None], 2), "adaptive_avg_pool2d to 2"),
    "pad with ones": (lambda x: F.pad(x, (1, 1), value=1.0), "pad with a value"),
    "rounding": (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode"),
    "to whole numbers": (lambda x: x.long(), "a conversion to torch.int64"),
    "public target": (lambda x: torch.zeros(3, 4).add_(x), "add_ into a public tensor"),
    "public source": (lambda x: x.copy_(A), "copy_ of a public tensor"),
    "another shape in place": (lambda x: x.unsqueeze_(0), "unsqueeze_ to another shape"),
}
FREE = {"reshape", "index"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_secure_version_is_refused_by_name_and_nothing_runs(name: str) -> None:
    parties, (function, message) = PlainParties(), REFUSED[name]
    with pytest.raises(NoSecureVersion, match=message):
        function(share(A, parties))
    assert set(parties.called) <= FREE


def test_truth_values_are_not_added_and_places_are_not_indices() -> None:
    shared = share(A, PlainParties())
    with pytest.raises(NoSecureVersion, match="add of two bool tensors"):
        (shared > 0) + (shared > 1)
    for indexed in (A, shared):
        with pytest.raises(NoSecureVersion, match="indexing by a shared tensor"):
            indexed[shared.argmax(0)]


def test_an_error_names_what_is_near() -> None:
    with pytest.raises(NoSecureVersion, match=r"to do: +near it are .*softmax"):
        F.softplus(share(A, PlainParties()))


@pytest.mark.parametrize("function", [lambda x: x @ MATRIX.t(), lambda x: x + normal(7), lambda x: x.view(5, -1)])
def test_a_misshapen_call_raises_what_torch_raises_and_nothing_runs(function: Function) -> None:
    parties = PlainParties()
    with pytest.raises(RuntimeError, match=r"reduction dim|broadcast|invalid for input of size"):
        function(share(A, parties))
    assert parties.called == []


def test_every_name_that_is_registered_is_one_of_torchs() -> None:
    assert all(callable(found) for found in FUNCTIONS)
    assert len(PRIMITIVES) > 70
    assert {"relu", "cross_entropy", "convolution", "add", "matmul", "max_pool2d"} <= set(supported())


def test_the_page_names_all_that_can_be_computed_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "secure-computation.md").read_text()
    section = page[page.index("## What can be computed") : page.index("`index` is `x[...]`")]
    named = set(re.findall(r"`(\w+)`", section)) - {"torch"}
    assert set(supported()) <= named
    composed = named - set(supported())
    assert composed == {"chunk", "conv2d", "flatten", "fold", "linear", "movedim", "pad", "square", "unfold"}
    assert all(re.search(rf"\b{name}\b", Path(__file__).read_text()) for name in composed)


def test_the_errors_that_the_page_names_are_those_of_the_parties() -> None:
    page = (Path(__file__).parents[2] / "docs" / "secure-computation.md").read_text()
    told = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \|$", approximations.__doc__ or "", re.MULTILINE)
    names = {"inverse_square_root": "rsqrt"}
    for name, _, error in told[1:]:
        (row,) = re.findall(rf"^\| `{names.get(name, name)}`[^|]* \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
        assert row == error
    assert (LEAST_POWER, LARGEST_POWER) == (-8, 12)
    assert "2^-8 to 2^12" in page
    assert limit(20) == 2**22
