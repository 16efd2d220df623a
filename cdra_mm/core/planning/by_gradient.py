"""Blocks, ranks and vectors by the mean gradient: one currency for the whole model.

Of every target the offers (`offers`, which says what they gain) that no mix of two others beats are
kept, and the model takes them by gain per parameter until the budget is met: the solution with one
multiplier, Lagrange's, for all targets.

This is not of the CDRA paper, whose blocks hold the entries with the largest scores (Eq. 4) and
get their rank from a count (Eq. 7).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdra_mm.errors import PlanError

from .offers import NOTHING, START_LENGTH, GradientRules, Offer, market_of
from .plan import Block, Plan, Vector
from .spectra import leading_directions
from .threads import one_thread

__all__ = ['plan_by_gradient', 'start_of']

DEFAULTS = GradientRules()
UNSPENT = 0.9  # share of a budget below which it is said that more cannot be bought
ROUNDING = 1e-6  # of a gain in fp32


class _Step(NamedTuple):
    """From one offer of a target to the next better one."""

    rate: float  # gain per parameter
    name: str
    offer: Offer
    price: int


@one_thread()
def plan_by_gradient(
    gradients: Mapping[str, Tensor],
    budget_params: int,
    rules: GradientRules = DEFAULTS,
    *,
    also_train: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprint: str = '',
) -> Plan:
    """A plan that gains the most for its size, within a budget.

    What is bought by the multiplier gains the most of all that costs as much; what is then left of
    the budget goes, offer by offer, to what gains the most of all that still fit.

    Args:
        gradients: Mean gradients by target name (`mean_gradients`); matrices and vectors.
        budget_params: Trainable backbone parameters at most, `also_train` included.
        rules: What there is to choose from.
        also_train: See `make_plan`.
        settings: See `make_plan`.
        fingerprint: See `make_plan`.

    Returns:
        The plan. Its setting ``energy_share`` is the share of the squared length of all gradients
        that the trained parts can follow. Rows and columns are in the order of the matrix.

    Raises:
        PlanError: If a gradient is not finite or of another kind, or nothing fits the budget; also
            if there are matrices, and none fits.
    """
    also_train = dict(also_train or {})
    room = budget_params - sum(also_train.values())
    total, steps = 0.0, list[_Step]()
    orders, offered = dict[str, tuple[Tensor, ...]](), dict[str, list[Offer]]()
    cheapest: Offer | None = None
    for name, gradient in gradients.items():
        if gradient.dim() not in (1, 2):
            raise PlanError(_no_gradient(name, gradient))
        energy, offers, orders[name] = market_of(gradient, rules)
        if not energy < float('inf'):
            raise PlanError(_no_gradient(name, gradient))
        total += energy
        if gradient.dim() == 2:
            cheapest = min([*offers, *([cheapest] if cheapest else [])], default=None)
        offered[name] = offers
        steps += _steps(name, offers)
    most = sum(step.price for step in steps)
    if most < UNSPENT * room:
        largest = {step.name: step.offer for step in steps}.values()  # the last of each target
        larger = any(rules.max_rank == offer.rank < min(offer.sides) for offer in largest)
        warnings.warn(
            f'of a budget of {room} parameters, {room - most} are left over: nothing else can be '
            + (
                f'bought with max_rank={rules.max_rank}; a larger one spends them'
                if larger
                else 'gained by what competes; give less, or let more compete'
            ),
            stacklevel=3,
        )
    taken = _taken(steps, room)
    spent = sum(offer.price for offer in taken.values())
    taken |= _fillers(offered, taken, room - spent)
    order = [name for name in gradients if name in taken]
    matrices = [name for name in order if gradients[name].dim() == 2]
    if not matrices and not (taken and all(g.dim() == 1 for g in gradients.values())):
        vectors = sum(offer.price for offer in taken.values())
        reserved = budget_params - room
        raise PlanError(
            f'no adapter fits a budget of {budget_params} trainable parameters'
            + (f', of which {reserved} are also_train' if also_train else '')
            + _why_none(cheapest, vectors, len(gradients))
        )
    return Plan(
        method='cdra',
        blocks=tuple(_block(name, gradients[name], taken[name], orders[name]) for name in matrices),
        vectors=tuple(
            Vector(name, taken[name].price, None, 0) for name in order if name not in matrices
        ),
        also_train=also_train,
        num_competing=sum(gradient.numel() for gradient in gradients.values()),
        settings={
            **(settings or {}),
            # Rounded: sums of several processes differ in the last digits, and plans must not.
            'energy_share': round(sum(offer.energy for offer in taken.values()) / total, 4),
        },
        fingerprint=fingerprint,
    )


def start_of(plan: Plan, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``down`` of every block of a plan, along what the gradient of the block is largest in.

    With ``up`` at zero the first step then moves the block by ``G down^T down``: the part of its
    gradient that a rank of r can hold most of.

    Args:
        plan: The plan.
        gradients: Mean gradients of its blocks by name.

    Returns:
        The r top right singular vectors of ``G[R, C]``, each of length 0.577; fp32 ``[r, |C|]``
        by name. Of large blocks as `leading_directions` finds them: together they hold what r
        directions can hold to about a thousandth; where singular values are almost equal, single
        ones are mixed.
    """
    start = {}
    for block in plan.blocks:
        gradient = gradients[block.name]
        rows, cols = (
            torch.tensor(side, device=gradient.device) for side in (block.rows, block.cols)
        )
        part = gradient.index_select(0, rows).index_select(1, cols)
        _, directions = leading_directions(part, block.rank)
        start[block.name] = directions * START_LENGTH
    return start


def _no_gradient(name: str, gradient: Tensor) -> str:
    energy = float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2
    return (
        f'{name}: the mean gradient is {tuple(gradient.shape)} with squared length {energy}: '
        'expected a finite matrix or vector'
    )


def _why_none(cheapest: Offer | None, vectors: int, num_targets: int) -> str:
    """Why a plan has no block, and what to do."""
    if cheapest is None:
        return f': none of the {num_targets} targets is a matrix with a gradient'
    if not vectors:
        return f': the smallest adapter has {cheapest.price}'
    return (
        f': vectors, which gain more per parameter, take {vectors} of it; give more, or set '
        "compete='matrices'"
    )


def _steps(name: str, offers: list[Offer]) -> list[_Step]:
    """From nothing to the largest offer along the upper hull of gain over price.

    On the hull what a further parameter brings falls from step to step.
    """
    hull = [NOTHING]
    for offer in sorted(offers, key=lambda offer: (offer.price, -offer.gain)):
        if not _is_more(offer.gain, hull[-1].gain):
            continue
        if offer.price == hull[-1].price:
            continue
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-2], offer):
            hull.pop()
        hull.append(offer)
    return [
        _Step(_rate(before, offer), name, offer, offer.price - before.price)
        for before, offer in zip(hull, hull[1:], strict=False)
    ]


def _rate(before: Offer, after: Offer) -> float:
    return (after.gain - before.gain) / (after.price - before.price)


def _taken(steps: list[_Step], room: int) -> dict[str, Offer]:
    """The offers that are bought: best rate first; a target that has become too dear is closed."""
    taken: dict[str, Offer] = {}
    closed: set[str] = set()
    for step in sorted(steps, key=lambda step: -step.rate):  # stable: in the order of the targets
        if step.name in closed:
            continue
        if step.price > room:
            closed.add(step.name)
            continue
        room -= step.price
        taken[step.name] = step.offer
    return taken


def _fillers(
    offered: Mapping[str, list[Offer]], taken: Mapping[str, Offer], room: int
) -> dict[str, Offer]:
    """What fits into what the steps have left: again and again what gains the most.

    The steps of a target go from one offer of its hull to the next; if the next is too dear, an
    offer below the hull may not be.
    """
    held, better = dict(taken), dict[str, Offer]()

    def helps(name: str, offer: Offer) -> bool:
        now = held.get(name, NOTHING)
        return offer.price - now.price <= room and _is_more(offer.gain, now.gain)

    left = [(name, offer) for name, offers in offered.items() for offer in offers]
    while left := [each for each in left if helps(*each)]:  # what no longer helps never will
        name, offer = max(left, key=lambda each: each[1].gain - held.get(each[0], NOTHING).gain)
        room -= offer.price - held.get(name, NOTHING).price
        held[name] = better[name] = offer
    return better


def _is_more(gain: float, than: float) -> bool:
    """Whether it is, beyond what is rounding: a rank without any gradient."""
    return gain > than * (1 + ROUNDING)


def _block(name: str, gradient: Tensor, offer: Offer, orders: tuple[Tensor, ...]) -> Block:
    rows, cols = (
        order[:side].sort().values for order, side in zip(orders, offer.sides, strict=True)
    )
    shape = (gradient.shape[0], gradient.shape[1])
    return Block(name, shape, tuple(rows.tolist()), tuple(cols.tolist()), offer.rank, 0)
