"""One thread and a generator of our own for a while: what is drawn follows from a seed, and the caller notices nothing.

``torch.manual_seed`` also visits every accelerator there might be, which takes longer than a small owner's step. Here
only the generators of the CPU and of the device in use are seeded, with the same streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """One thread, and PyTorch's generators seeded; the caller's are as before afterwards."""
    threads = torch.get_num_threads()
    before = torch.get_rng_state()
    on_card = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.set_num_threads(1)
    try:
        reseed(seed, device)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(before)
        if on_card is not None:
            torch.cuda.set_rng_state(on_card, device)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generators that a computation on ``device`` draws from, as ``torch.manual_seed`` does."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
