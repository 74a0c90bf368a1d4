"""The largest of shared values: neighbours are compared, half of them drop out, again and again."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The largest value of a dimension. Exact; its gradient goes to the first where several are alike."""
    return _placed(_played([x.movedim(dim, 0)])[0], dim, keepdim)


def largest_and_first(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The largest value of a dimension, and its place: the first where several are alike."""
    seeds = x.movedim(dim, 0)
    numbers = torch.arange(len(seeds)).reshape(-1, *[1] * (x.dim() - 1)).expand(seeds.shape)
    value, place = _played([seeds, numbers])
    return _placed(value, dim, keepdim), _placed(place, dim, keepdim)


def _played(players: list[Tensor]) -> list[Tensor]:
    """What is left of tensors along their first dimension if the first tensor decides. There is at least one place."""
    while len(players[0]) > 1:
        n_paired = len(players[0]) // 2 * 2
        stays = players[0][0:n_paired:2] >= players[0][1:n_paired:2]
        players = [_round(player, stays, n_paired) for player in players]
    return [player[0] for player in players]


def _round(player: Tensor, stays: Tensor, n_paired: int) -> Tensor:
    left, right = player[0:n_paired:2], player[1:n_paired:2]
    winners = stays * (left - right) + right
    return torch.cat([winners, player[n_paired:]]) if len(player) > n_paired else winners


def _placed(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    return x.unsqueeze(dim) if keepdim else x
