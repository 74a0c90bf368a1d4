"""Strategies: the algorithms at the server. Imported as ``fedray.strategies``, never by the bare folder's name."""

if __name__ != "fedray.strategies":
    raise ImportError("import fedray.strategies, not strategies: the folder at the top level is part of fedray")

from fedray.strategies.fedavg import FedAvg
from fedray.strategies.fedprox import FedProx

__all__ = ["FedAvg", "FedProx"]
