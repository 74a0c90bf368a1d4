"""Images made up on demand: as many owners as asked for, and nothing on disk.

Every class has a prototype, a smooth pattern made of the longest cosine waves with normal amplitudes. A row is a
window of its class's prototype, moved a little at random, in random contrast, under white noise; moving is what a
convolutional model copes with and a linear one does not. An owner's class shares are a draw from Dirichlet(alpha):
Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019,
section 3. Deviation: ``alpha`` is the concentration of each class, as in most code since; theirs, which they spread
over the classes, is ``classes`` times as large.

All draws come from ``data.seed``: an owner's rows depend neither on other owners nor on how many there are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import Images
from fedray.data.rows import Rows
from fedray.seeds import generator
from fedray.values import Examples, Schema

MIN_ROWS = 2

_N_WAVES = 8
"""Along each side of a prototype."""
_MOVED = 6
"""A window moves by up to a sixth of a side, either way: 4 of 28 pixels, 5 of 32."""
_CONTRAST = (0.5, 1.5)


def schema(data: Images) -> Schema:
    """Known from the section alone."""
    return Schema(data.shape, "float32", (), data.classes)


def sizes(data: Images) -> NDArray[np.int64]:
    """Rows of every owner, shape ``(n_owners,)``, without making any; read-only."""
    return _sizes(data.seed, data.owners, data.rows, data.spread)


@lru_cache(maxsize=4)
def _sizes(seed: int, n_owners: int, mean: int, spread: float) -> NDArray[np.int64]:
    """What is beyond the fewest rows is log-normal, rounded up or down at random so that means stay."""
    normals = generator(seed, "images", "sizes").standard_normal(n_owners)
    beyond = (mean - MIN_ROWS) * np.exp(spread * normals - spread**2 / 2)
    whole = np.floor(beyond)
    is_up = generator(seed, "images", "rounding").random(n_owners) < beyond - whole
    found: NDArray[np.int64] = (MIN_ROWS + whole + is_up).astype(np.int64)
    found.flags.writeable = False
    return found


def rows(data: Images, number: int) -> Rows:
    """Owner ``number``: float32 features of shape ``(n, *data.shape)``, int64 targets of shape ``(n,)``."""
    rng = generator(data.seed, "images", number)
    labels = _labels(rng, class_shares(data, rng), int(sizes(data)[number]))
    return Rows(_seen(data, labels, rng))


def central_rows(data: Images) -> Examples:
    """The server's own test rows, unscaled, all classes alike; empty where ``central_test`` is 0."""
    rng = generator(data.seed, "images", "central test")
    labels = rng.integers(0, data.classes, data.central_test)
    return _seen(data, labels, rng)


def class_shares(data: Images, rng: np.random.Generator) -> NDArray[np.float64]:
    """How much of each class an owner has, shape ``(classes,)``; the first draw of the owner's generator."""
    if data.alpha is None:
        return np.full(data.classes, 1 / data.classes)
    return rng.dirichlet(np.full(data.classes, data.alpha))


def _labels(rng: np.random.Generator, shares: NDArray[np.float64], n_rows: int) -> NDArray[np.int64]:
    ends = np.cumsum(shares)
    labels: NDArray[np.int64] = np.searchsorted(ends[:-1], rng.random(n_rows) * ends[-1], side="right")
    return labels


def _seen(data: Images, labels: NDArray[np.int64], rng: np.random.Generator) -> Examples:
    """An image of each label; values have mean square 1 or thereabouts, whatever the noise."""
    windows = _windows(data.seed, data.classes, data.shape)
    down, right = (rng.integers(0, windows.shape[axis], len(labels)) for axis in (1, 2))
    contrast = rng.uniform(*_CONTRAST, len(labels)).astype(np.float32)
    scale = np.float32((1 + data.noise**2) ** -0.5)
    features = rng.standard_normal((len(labels), *data.shape), dtype=np.float32)
    features *= np.float32(data.noise) * scale
    features += windows[labels, down, right] * (scale * contrast)[:, None, None, None]
    return Examples(features, labels)


@lru_cache(maxsize=4)
def _windows(seed: int, n_classes: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Every window of every prototype: a view of shape ``(n_classes, n_down, n_right, *shape)``."""
    channels, *sides = shape
    larger = [side + 2 * (side // _MOVED) for side in sides]
    whole = _prototypes(generator(seed, "images", "prototypes"), (n_classes, channels), *larger)
    windows = np.lib.stride_tricks.sliding_window_view(whole, sides, axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5)


def _prototypes(rng: np.random.Generator, leading: tuple[int, int], height: int, width: int) -> NDArray[np.float32]:
    """Sums of waves, shape ``(*leading, height, width)``, each of mean 0 and mean square 1."""
    down, right = _waves(height), _waves(width)
    amplitudes = rng.standard_normal((*leading, len(down), len(right)))
    amplitudes[..., 0, 0] = 0
    found = down.T @ amplitudes @ right
    size = np.sqrt((found**2).mean(axis=(-2, -1), keepdims=True))
    return (found / np.where(size > 0, size, 1)).astype(np.float32)


def _waves(side: int) -> NDArray[np.float64]:
    """The longest cosine waves over a side, shape ``(n_waves, side)``."""
    place = (np.arange(side) + 0.5) / side
    return np.cos(np.pi * np.arange(min(_N_WAVES, side))[:, None] * place)
