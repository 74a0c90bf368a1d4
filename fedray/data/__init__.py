"""Data of the owners: who they are, what their rows look like, and one owner's shard.

``open_shard`` is called inside the owner's process; ``owner_names``, ``sizes_of``, ``schema_of`` and
``ensure_shards`` by the driver. Must not import torch or ray; pandas and scikit-learn are imported on use only.
"""

from fedray.data.catalogue import DataSetInfo, catalogue
from fedray.data.numbered import Numbered
from fedray.data.opening import central_test, ensure_shards, open_shard, owner_names, schema_of, sizes_of
from fedray.data.sizes import Sizes
from fedray.data.writing import write_shards

__all__ = [
    "DataSetInfo",
    "Numbered",
    "Sizes",
    "catalogue",
    "central_test",
    "ensure_shards",
    "open_shard",
    "owner_names",
    "schema_of",
    "sizes_of",
    "write_shards",
]
