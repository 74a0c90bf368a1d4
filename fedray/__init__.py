"""Federated learning on Ray for PyTorch.

    import fedray

    experiment = fedray.Experiment(data="digits", strategy={"name": "fedprox", "mu": 0.1}, rounds=10)
    for record in fedray.run(experiment):
        print(record.round, record.metrics)

Importing this package loads neither ray nor torch: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedray.actors.parties import Parties
    from fedray.config import Experiment, load
    from fedray.data import write_shards
    from fedray.mpc.modules import secure
    from fedray.mpc.sharing import share
    from fedray.mpc.tensor import SecureTensor
    from fedray.running import Run, load_model, resume, run
    from fedray.tune import Comparison, compare
    from fedray.values import RoundRecord
    from fedray.vertical_runs import Vertical

_HOMES = {
    "Parties": "fedray.actors.parties",
    "Experiment": "fedray.config",
    "load": "fedray.config",
    "write_shards": "fedray.data",
    "Run": "fedray.running",
    "run": "fedray.running",
    "resume": "fedray.running",
    "load_model": "fedray.running",
    "compare": "fedray.tune",
    "Comparison": "fedray.tune",
    "RoundRecord": "fedray.values",
    "SecureTensor": "fedray.mpc.tensor",
    "secure": "fedray.mpc.modules",
    "share": "fedray.mpc.sharing",
    "Vertical": "fedray.vertical_runs",
}

__all__ = [
    "Comparison",
    "Experiment",
    "Parties",
    "RoundRecord",
    "Run",
    "SecureTensor",
    "Vertical",
    "compare",
    "load",
    "load_model",
    "resume",
    "run",
    "secure",
    "share",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
