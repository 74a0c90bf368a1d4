"""Inference and training on shares, beside the same in the clear: what is lost, and how much longer it takes.

1. A small convolutional network, trained in the clear, classifies scikit-learn's digits on shares.
2. Logistic regression is trained on shares of the breast cancer data; scikit-learn fits the same objective.
3. A perceptron is trained on shares of digits, and from the same start on the same batches in the clear.

    .venv/bin/python scripts/studies/secure_learning.py            # a minute; three threads of this process
    .venv/bin/python scripts/studies/secure_learning.py --ray      # three Ray actors
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from contextlib import AbstractContextManager

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedray.mpc.conducting import Conductor
from fedray.mpc.local import LocalParties
from fedray.mpc.modules import secure
from fedray.mpc.sharing import share

MOST_POINTS_LOST, MOST_COEFFICIENT_ERROR, LEAST_GAIN = 0.5, 1e-2, 0.9
N_TEST = 450


def digits() -> tuple[Tensor, Tensor]:
    """Images of shape (1797, 64) between 0 and 1, in an order drawn once, and their digits."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(module: nn.Module, inputs: Tensor, targets: Tensor, n_epochs: int, lr: float, batch: int = 64) -> None:
    """Inputs and targets may be shares: which rows are in which batch is public."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    draw = torch.Generator().manual_seed(1)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(inputs), generator=draw).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[rows]), targets[rows]).backward()
            optimizer.step()


def accuracy(scores: Tensor, targets: Tensor) -> float:
    return float((scores.argmax(1) == targets).double().mean())


def inference(parties: Conductor) -> bool:
    """Whether the network classifies as well on shares."""
    images, targets = digits()
    module = network()
    train(module, images[N_TEST:], targets[N_TEST:], n_epochs=40, lr=0.02)
    with torch.no_grad():
        expected = accuracy(module.eval()(images[:N_TEST]), targets[:N_TEST])
        secured, shared = secure(module, parties), share(images[:N_TEST], parties)
        began = time.perf_counter()
        labels = secured(shared).argmax(1).reveal()
        ms = 1e3 * (time.perf_counter() - began) / N_TEST
        began = time.perf_counter()
        module(images[:N_TEST]).argmax(1)
        plain_ms = 1e3 * (time.perf_counter() - began) / N_TEST
    found = float((labels == targets[:N_TEST]).double().mean())
    print(f"inference   accuracy {found:.4f} on shares, {expected:.4f} in the clear", flush=True)
    print(f"            {ms:.2f} ms an image in a batch of {N_TEST}, {plain_ms:.4f} in the clear", flush=True)
    return abs(found - expected) <= MOST_POINTS_LOST / 100


def logistic_regression(parties: Conductor, n_steps: int = 500) -> bool:
    """Whether coefficients are scikit-learn's. The loss is a sum, so that small gradients keep their digits."""
    data = load_breast_cancer()
    rows = StandardScaler().fit_transform(data.data)
    fitted = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(rows, data.target)
    inputs, labels = torch.tensor(rows, dtype=torch.float32), torch.tensor(data.target, dtype=torch.float32)
    steepest = float(torch.linalg.eigvalsh(inputs.T @ inputs)[-1]) / 4 + 1
    plain = nn.Linear(30, 1)
    nn.init.zeros_(plain.weight)
    nn.init.zeros_(plain.bias)
    seconds, coefficients = [], []
    for module, x, y in ((plain, inputs, labels), (secure(plain, parties), *_shared(parties, inputs, labels))):
        groups = [{"params": [module.weight], "weight_decay": 1.0}, {"params": [module.bias]}]
        optimizer = torch.optim.SGD(groups, lr=1 / steepest, momentum=0.95, nesterov=True)
        began = time.perf_counter()
        for _ in range(n_steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(module(x).squeeze(1), y, reduction="sum").backward()
            optimizer.step()
        coefficients.append(torch.cat([_opened(module.weight).flatten(), _opened(module.bias)]))
        seconds.append(time.perf_counter() - began)
    exact = torch.tensor([*fitted.coef_[0], *fitted.intercept_])
    errors = [float((one - exact).abs().max()) for one in coefficients]
    print(f"logistic    coefficients up to {float(exact.abs().max()):.2f}; largest difference to scikit-learn's")
    print(f"            {errors[1]:.1e} on shares, {errors[0]:.1e} in the clear, after {n_steps} steps")
    print(f"            {_times(seconds, n_steps)}", flush=True)
    return errors[1] <= MOST_COEFFICIENT_ERROR


def perceptron_training(parties: Conductor, n_epochs: int = 3) -> bool:
    """Whether training on shares gains at least nine tenths of what training in the clear gains."""
    images, targets = digits()
    start = perceptron()
    with torch.no_grad():
        before = accuracy(start(images[:N_TEST]), targets[:N_TEST])
    plain, secured = copy.deepcopy(start), secure(start, parties)
    one_hot = F.one_hot(targets, 10).float()
    gains, seconds = [], []
    for module, x, y in ((plain, images, one_hot), (secured, *_shared(parties, images, one_hot))):
        began = time.perf_counter()
        train(module, x[N_TEST:], y[N_TEST:], n_epochs, lr=0.1)
        with torch.no_grad():
            scores = _opened(module(x[:N_TEST]))
        seconds.append(time.perf_counter() - began)
        gains.append(accuracy(scores, targets[:N_TEST]) - before)
    after = [before + gain for gain in gains]
    print(f"perceptron  accuracy {before:.4f} before; {after[1]:.4f} on shares, {after[0]:.4f} in the clear")
    print(f"            {_times(seconds, n_epochs * -(-(len(images) - N_TEST) // 64))}", flush=True)
    return gains[1] >= LEAST_GAIN * gains[0]


def _shared(parties: Conductor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(share(tensor, parties) for tensor in tensors)


def _opened(tensor: Tensor) -> Tensor:
    return tensor.detach().reveal() if hasattr(tensor, "reveal") else tensor.detach().double()


def _times(seconds: list[float], n_steps: int) -> str:
    plain, shared = (1e3 * each / n_steps for each in seconds)
    return f"{shared:.1f} ms a step, {plain:.3f} in the clear: {shared / plain:.0f} times as long"


def started(on_ray: bool) -> AbstractContextManager[Conductor]:
    if not on_ray:
        return LocalParties()
    from fedray.actors.parties import Parties

    return Parties()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="have three Ray actors compute")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with started(asked.ray) as parties:
        kept = [inference(parties), logistic_regression(parties), perceptron_training(parties)]
        n_bytes = max(sum(cost.bytes_sent[party] for cost in parties.costs()) for party in range(3))
        n_rounds = sum(cost.rounds for cost in parties.costs())
    print(f"in all      {n_bytes / 1e6:.0f} MB sent by the busiest party, {n_rounds} rounds")
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
