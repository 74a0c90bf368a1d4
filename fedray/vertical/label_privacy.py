"""Labels randomised once, before any is used, so that all that is made of them is private for each label.

B. Ghazi, N. Golowich, R. Kumar, P. Manurangsi, C. Zhang, "Deep Learning with Label Differential Privacy", NeurIPS 2021,
section 3 (K-ary randomised response, of Warner 1965). Deviations: no prior (their RRWithPrior) and one stage only. The
ledger charges one label that is replaced by another. Whose labels these are is not protected: alignment tells owners.

The accountant is imported where it is used: a run without label privacy loads none.
"""

from __future__ import annotations

import math
import os
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import ConfigError
from fedray.privacy.events import RandomisedResponse
from fedray.vertical.labels import Labels
from fedray.vertical.setting import Setting


def mechanism(labels: Labels, epsilon: float) -> RandomisedResponse:
    """What randomises these labels.

    Raises:
        ConfigError: they are numbers, of which there is no end.
    """
    if labels.n_classes is None:
        raise ConfigError("label privacy for labels that are numbers", "classes", "leave label_dp out")
    return RandomisedResponse(epsilon, labels.n_classes)


def charge(event: RandomisedResponse, setting: Setting, run: str) -> None:
    """Put the release on the label holder's ledger: the one that it has opened on its machine, or the run's.

    Args:
        event: what is about to be released.
        setting: whose labels, and where the run's own ledger is.
        run: identifies the run among all.

    Raises:
        BudgetExhausted: it would go beyond the label holder's budget; nothing is recorded.
    """
    from fedray.privacy.ledger import Ledger, own_ledger
    from fedray.privacy.ledger_entries import Release
    from fedray.privacy.ledger_file import LedgerFile

    name = setting.holder
    path = setting.folder / quote(name, safe="") / "ledger.jsonl"
    ledger = own_ledger(name) or Ledger(LedgerFile(path), name)
    ledger.reserve([Release(run, setting.experiment, None, "train", "example", event, 1)])


def randomised(targets: Tensor, event: RandomisedResponse) -> Tensor:
    """Each class kept with probability e^epsilon / (e^epsilon + n_classes - 1), else another one, uniformly.

    Draws are the operating system's. The probability of another class is a multiple of 2^-64 that is larger than it has
    to be, by 2^-64 and 2^-40 of itself at most; that covers all rounding.

    Args:
        targets: class numbers, int64 of shape ``(n,)``.
        event: epsilon and the number of classes.
    """
    odds = math.exp(-event.epsilon) * (event.n_classes - 1)
    bound = np.uint64(math.ceil(math.ldexp(odds / (1 + odds) * (1 + 2.0**-41), 64)))
    steps = 1 + _draws(len(targets)) % np.uint64(event.n_classes - 1)
    moved = (targets + torch.from_numpy(steps.astype(np.int64))) % event.n_classes
    return torch.where(torch.from_numpy(_draws(len(targets)) < bound), moved, targets)


def _draws(n: int) -> NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * n), dtype=np.uint64)
