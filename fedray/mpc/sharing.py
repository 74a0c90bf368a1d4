"""``share``: from a tensor to a shared one. Importing this file registers all that can be computed on shares."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fedray.mpc import arithmetic, convolution, functions, losses, nonlinear, structure
from fedray.mpc.engine import Parties
from fedray.mpc.held import Held
from fedray.mpc.tensor import Cell, SecureTensor

OPERATIONS = (arithmetic, convolution, functions, losses, nonlinear, structure)
"""The files that fill ``registry``."""


def share(tensor: Tensor, parties: Parties, readers: Collection[bytes] | None = None) -> SecureTensor:
    """Split a tensor here and give each party its shares.

    Args:
        tensor: finite numbers of any shape; or what ``torch.as_tensor`` makes one of.
        parties: who will hold it.
        readers: public keys of those who may learn it, and what is computed from it together with what they may learn
            besides. The caller alone if left out.

    Returns:
        A tensor of the same shape; float32 where there are fractions, whatever it was.

    Raises:
        DataError: a value is not finite, or beyond what fixed point holds.
    """
    value = torch.as_tensor(tensor).detach()
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return SecureTensor(Cell(Held(parties, parties.share(value, readers))), value.shape, dtype)
