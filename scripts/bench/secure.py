"""What secure operators cost beside torch's on float32: CPU time and bytes of each party, rounds, and error.

The three parties are threads of this process, so that bytes and rounds are those of a network and times are not. A
ratio is the CPU time of the busiest party's thread over that of torch on one thread; medians over repetitions.

    .venv/bin/python scripts/bench/secure.py            # half a minute; prints, and writes runs/bench/secure.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedray.environment import environment
from fedray.mpc.local import LocalParties
from fedray.mpc.sharing import share
from fedray.mpc.tensor import SecureTensor

Function = Callable[..., Tensor]
MOST_RATIO, MOST_BYTES, MOST_ERROR = 15.0, 16.0, 2e-4


@dataclass(frozen=True)
class Measured:
    """One function: CPU in milliseconds, bytes of the busiest party a value of the result."""

    name: str
    plain_ms: float
    party_ms: float
    ratio: float
    bytes_a_value: float
    rounds: float
    error: float


def cases(seed: int) -> dict[str, tuple[Function, list[Tensor]]]:
    """Inputs near those of networks: data of unit size, weights as torch draws them."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=draw) * scale

    images = normal(64, 8, 14, 14)
    return {
        "matmul 128 x 784 x 64": (torch.matmul, [normal(128, 784), normal(784, 64, scale=784**-0.5)]),
        "matmul 1024 x 784 x 128": (torch.matmul, [normal(1024, 784), normal(784, 128, scale=784**-0.5)]),
        "conv2d 64 x 8 x 14 x 14, 16 filters": (F.conv2d, [images, normal(16, 8, 3, 3, scale=72**-0.5)]),
        "multiply 100000": (torch.mul, [normal(100_000), normal(100_000)]),
        "relu 100000": (F.relu, [normal(100_000)]),
        "max_pool2d 64 x 8 x 14 x 14": (lambda x: F.max_pool2d(x, 2), [images]),
        "sigmoid 100000": (torch.sigmoid, [normal(100_000, scale=3)]),
        "exp 100000": (torch.exp, [normal(100_000)]),
        "softmax 1000 x 10": (lambda x: F.softmax(x, 1), [normal(1000, 10, scale=3)]),
        "argmax 1000 x 10": (lambda x: x.argmax(1), [normal(1000, 10)]),
    }


def measured(name: str, function: Function, inputs: list[Tensor], n: int) -> Measured:
    """One function n times over, after once for warming up."""
    with LocalParties() as parties, torch.no_grad():
        shared = [share(tensor, parties) for tensor in inputs]
        party_ms, spent = [], _spent(parties)
        for _ in range(n + 1):
            result = function(*shared)
            assert isinstance(result, SecureTensor)
            values, before, spent = result.reveal(), spent, _spent(parties)
            party_ms.append(1e3 * (spent[0] - before[0]))
        plain_ms = median(_plain_ms(function, inputs) for _ in range(5 * n))
    exact = function(*(tensor.double() for tensor in inputs))
    party = median(party_ms[1:])
    return Measured(
        name=name,
        plain_ms=plain_ms,
        party_ms=party,
        ratio=party / plain_ms,
        bytes_a_value=(spent[1] - before[1]) / result.numel(),
        rounds=spent[2] - before[2],
        error=float((values - exact).abs().max()),
    )


def _spent(parties: LocalParties) -> tuple[float, int, int]:
    """CPU seconds and bytes of the busiest party, and rounds, so far."""
    costs = parties.costs()
    cpu = max((sum(cost.cpu_seconds[party] for cost in costs) for party in range(3)), default=0.0)
    sent = max((sum(cost.bytes_sent[party] for cost in costs) for party in range(3)), default=0)
    return cpu, sent, sum(cost.rounds for cost in costs)


def _plain_ms(function: Function, inputs: list[Tensor]) -> float:
    began = time.thread_time()
    function(*inputs)
    return 1e3 * (time.thread_time() - began)


def relu_is_exact(seed: int, n: int) -> bool:
    """Whether relu's sign is that of the fixed-point number for every one of n values, small ones among them."""
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()
    values *= 2.0 ** torch.randint(-22, 12, (n,), generator=torch.Generator().manual_seed(seed + 1))
    with LocalParties() as parties:
        shared = share(values, parties)
        held, kept = shared.reveal(), F.relu(shared).reveal()
    return torch.equal(kept, held.relu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/secure.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("function                             plain ms  party ms  ratio  B a value  rounds    error", flush=True)
    rows = []
    for name, (function, inputs) in cases(asked.seed).items():
        rows.append(row := measured(name, function, inputs, asked.repetitions))
        print(
            f"{row.name:36s} {row.plain_ms:8.3f}  {row.party_ms:8.2f}  {row.ratio:5.0f}  {row.bytes_a_value:9.1f}  "
            f"{row.rounds:6.0f}  {row.error:.1e}",
            flush=True,
        )
    exact = relu_is_exact(asked.seed, 100_000)
    print(f"relu of 100000 values of 2**-22 to 2**12: {'exact' if exact else 'NOT exact'}")
    for row in (row for row in rows if row.name.startswith("matmul")):
        kept = row.ratio <= MOST_RATIO and row.bytes_a_value <= MOST_BYTES and row.error <= MOST_ERROR
        print(f"{row.name}: {'within' if kept else 'NOT within'} {MOST_RATIO:g} x, {MOST_BYTES:g} B, {MOST_ERROR:g}")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment(), "relu_exact": exact, "rows": [asdict(row) for row in rows]}
    asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
