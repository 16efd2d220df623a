"""What can be bought of a target, and what it gains: blocks of a matrix by rank, a vector whole.

With G the mean gradient of a matrix over the scored samples, (R, C) a block of it and v_k its right
singular vectors, each of length 1, the gain of a block of rank r is

    descent    0.577 sum over k <= r of |G[R, C] v_k|_1
    energy     sum over k <= r of |G[R, C] v_k|_2^2, the r largest squared singular values

and a vector's, with gradient g, is |g|_1 or |g|_2^2. The price is what is trained:
``r (|R| + |C|)``, or the vector's length.

`descent` is how much the loss falls, to first order, when every trained parameter moves by 1
against its gradient: the first step of Adam, which goes equally far whatever a gradient's size.
That of ``up`` is ``G[R, C] down^T``, where the rows of ``down`` are 0.577 v_k, and ``down`` stays
while ``up`` is zero. `energy` leaves the length of ``down`` out: its root is the most that an
update of length 1 and rank r inside the block, or of the vector, can gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .spectra import block_spectra, scaled

__all__ = ['CURRENCIES', 'NOTHING', 'START_LENGTH', 'GradientRules', 'Market', 'Offer', 'market_of']

CURRENCIES = ('descent', 'energy')
START_LENGTH = 3**-0.5  # of a row of `down`: the expected one of LoRA's Kaiming-uniform rows


@dataclass(frozen=True)
class GradientRules:
    """What a plan by the mean gradient may choose from, and by what.

    Attributes:
        currency: What a gain is, see the module: ``'descent'`` or ``'energy'``.
        sides: Sides of a block over those of its matrix, each in (0, 1].
        max_rank: Largest rank of a block.
        vectors: Whether vectors are offered.

    Raises:
        ConfigError: If a setting is out of range.
    """

    currency: str = 'descent'
    sides: Sequence[float] = (1.0, 0.5, 0.25, 0.125)
    max_rank: int = 8
    vectors: bool = True

    def __post_init__(self) -> None:
        if self.currency not in CURRENCIES:
            raise ConfigError(unknown('currency', self.currency, CURRENCIES, ''))
        if not self.sides or not all(0 < side <= 1 for side in self.sides):
            raise ConfigError(f'sides={self.sides!r}: expected numbers above 0, at most 1')
        if self.max_rank < 1:
            raise ConfigError(f'max_rank={self.max_rank!r}: expected a count of at least 1')


class Offer(NamedTuple):
    """Something of one target that can be trained; (0, 0) sides are a vector, whole.

    Attributes:
        price: Its trained parameters.
        gain: In the currency of the rules.
        energy: The gain in energy, whatever the currency.
        sides: Rows and columns of a block.
        rank: Its rank.
    """

    price: int
    gain: float
    energy: float
    sides: tuple[int, int] = (0, 0)
    rank: int = 0


NOTHING = Offer(0, 0.0, 0.0)


class Market(NamedTuple):
    """What can be bought of one target.

    Attributes:
        energy: The squared length of its gradient.
        offers: All that can be trained of it.
        orders: Rows and columns of a matrix with gradient, those with the largest first.
    """

    energy: float
    offers: list[Offer]
    orders: tuple[Tensor, ...] = ()


def market_of(gradient: Tensor, rules: GradientRules) -> Market:
    """What can be bought of a target.

    Args:
        gradient: Its mean gradient, a matrix or a vector.
        rules: What there is to choose from.

    Returns:
        The market; without offers where there is no gradient. Its energy is finite if the gradient
        is.
    """
    if not gradient.numel():
        return Market(0.0, [])
    parts, scale = scaled(gradient)
    length = float(scale.double())
    unit = {'descent': length, 'energy': length**2}
    if gradient.dim() == 1:
        gains = {
            'descent': float(parts.abs().sum(dtype=torch.float64)) * unit['descent'],
            'energy': float(parts.square().sum(dtype=torch.float64)) * unit['energy'],
        }
        offer = Offer(len(gradient), gains[rules.currency], gains['energy'])
        return Market(offer.energy, [offer] if rules.vectors and offer.energy else [])
    squares = parts.square()
    energies = squares.sum(1), squares.sum(0)
    energy = float(energies[0].sum(dtype=torch.float64)) * unit['energy']
    if not 0 < energy < float('inf'):
        return Market(energy, [])
    rows, cols = (each.argsort(descending=True, stable=True) for each in energies)
    # Not parts[rows][:, cols], which takes five times as long.
    ordered = parts.index_select(0, rows).index_select(1, cols)
    offers = []
    all_rows, all_cols = (_lengths(side, rules.sides) for side in ordered.shape)
    for sides, spectrum in block_spectra(ordered, all_rows, all_cols, rules.max_rank).items():
        each = {
            'descent': START_LENGTH * unit['descent'] * spectrum.sums,
            'energy': unit['energy'] * spectrum.squares,
        }
        gained, held = (each[name].cumsum(0).tolist() for name in (rules.currency, 'energy'))
        for rank, both in enumerate(zip(gained, held, strict=True), 1):
            offers.append(Offer(rank * sum(sides), *both, sides, rank))
    return Market(energy, offers, (rows, cols))


def _lengths(side: int, shares: Sequence[float]) -> list[int]:
    return sorted({max(1, round(side * share)) for share in shares})
