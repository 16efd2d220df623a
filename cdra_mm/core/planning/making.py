"""From scores or masks to a `Plan`.

scores -> threshold -> mask -> compact (Eq. 4) -> dynamic_rank (Eq. 7) -> Plan

The threshold is one for the whole model. From there on the targets are taken
one by one: no more than the mask of one is ever held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from cdra_mm.errors import PlanError
from cdra_mm.progress import Phases, reported_to

from .ablations import NO_ABLATION, Ablation
from .budget import threshold_for_budget
from .budget_by_plans import threshold_by_plans
from .plan import Plan
from .rules import Rules
from .selection import Threshold, kth_largest, masks_above, requested_count
from .sizes import PlanSizes
from .threads import one_thread
from .treatment import treat_all, treat_matrix

__all__ = ['make_plan', 'plan_from_masks']


@one_thread()
def make_plan(
    scores: Mapping[str, Tensor],
    *,
    gamma: float | None = None,
    num_sensitive: int | None = None,
    budget_params: int | None = None,
    rank_rule: str | int = 'eq7',
    min_rank: int = 0,
    beta: float = 5,
    ablation: Ablation = NO_ABLATION,
    rank_alpha: float = 1,
    also_train: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprint: str = '',
    progress: Phases | None = None,
) -> Plan:
    """The CDRA-SPT plan for these scores (steps 1 to 3, Eqs. 4 and 7).

    Args:
        scores: Scores by target name, fp32 or bfloat16; 2-D are matrices, 1-D are vectors.
        gamma: Fraction of the competing entries to select.
        num_sensitive: Number of entries to select.
        budget_params: Trainable backbone parameters: the largest plan that does
            not exceed it, over every selection threshold. Counts adapters,
            vectors and `also_train`.
        rank_rule: See `dynamic_rank`.
        min_rank: See `dynamic_rank`.
        beta: A vector of length L is trained whole when at least ``L / beta`` of
            its entries are selected, otherwise only those are (SPT's rule).
        ablation: How matrices are treated otherwise than by the method.
        rank_alpha: Factor on the selected entries in the rule; see `dynamic_rank`.
        also_train: Parameters trained whole without competing, name -> entries.
        settings: Further plain values to keep in the plan.
        fingerprint: Fingerprint of the base weights.
        progress: Gets the phases of a budget's search, ``cdra_mm.progress.late_line`` for a line
            on a terminal; by default nothing is shown.

    Raises:
        PlanError: If not exactly one budget is given, a setting is out of
            range, or no adapter fits the budget.
    """
    rules = Rules(rank_rule, min_rank, beta, ablation, rank_alpha)
    budgets = {'gamma': gamma, 'num_sensitive': num_sensitive, 'budget_params': budget_params}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        listed = ', '.join(f'{name}={value}' for name, value in budgets.items())
        raise PlanError(f'{listed}: give exactly one of them')
    also_train = _checked_also_train(also_train)
    if budget_params is not None:
        with reported_to(progress):
            threshold = _threshold_within(scores, budget_params, rules, also_train)
    else:
        count = requested_count(scores, gamma=gamma, num_sensitive=num_sensitive)
        threshold = kth_largest(scores, count)
    return _plan(
        masks_above(scores, threshold),
        rules,
        also_train=also_train,
        settings={**given, **(settings or {})},
        fingerprint=fingerprint,
    )


@one_thread()
def plan_from_masks(
    masks: Mapping[str, Tensor],
    *,
    rank_rule: str | int = 'eq7',
    min_rank: int = 0,
    beta: float = 5,
    ablation: Ablation = NO_ABLATION,
    rank_alpha: float = 1,
    also_train: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprint: str = '',
) -> Plan:
    """The plan for given masks; see `make_plan`.

    Args:
        masks: Bool masks by target name, True = selected; 2-D are matrices, 1-D
            are vectors. A target without a selected entry is not in the plan.
        rank_rule: See `dynamic_rank`.
        min_rank: See `dynamic_rank`.
        beta: See `make_plan`.
        ablation: See `make_plan`.
        rank_alpha: See `make_plan`.
        also_train: See `make_plan`.
        settings: See `make_plan`.
        fingerprint: See `make_plan`.

    Raises:
        PlanError: If a mask is not bool or neither a matrix nor a vector, or a
            setting is out of range.
    """
    rules = Rules(rank_rule, min_rank, beta, ablation, rank_alpha)
    return _plan(
        masks.items(),
        rules,
        also_train=_checked_also_train(also_train),
        settings=settings or {},
        fingerprint=fingerprint,
    )


def _threshold_within(
    scores: Mapping[str, Tensor], budget: int, rules: Rules, also_train: Mapping[str, int]
) -> Threshold:
    """The threshold of the largest plan within a budget; see `make_plan`."""
    reserved = sum(also_train.values())
    if rules.ablation.size_ratio >= 1:
        sizes = PlanSizes(scores, rules)
        return threshold_for_budget(
            scores, budget, sizes, reserved=reserved, monotone=rules.monotone
        )

    # How many selected entries a smaller block holds, no histogram tells.
    def size_at(threshold: Threshold) -> tuple[int, int]:
        plan = _plan(masks_above(scores, threshold), rules, also_train=also_train)
        return plan.num_trainable, len(plan.blocks) + len(plan.sparse)

    return threshold_by_plans(scores, budget, size_at)


def _plan(
    masks: Iterable[tuple[str, Tensor]],
    rules: Rules,
    *,
    also_train: Mapping[str, int],
    settings: Mapping[str, Any] = MappingProxyType({}),
    fingerprint: str = '',
) -> Plan:
    """The plan for masks that come one by one; the settings are checked."""
    return Plan(
        method='cdra',
        **treat_all(masks, rules.beta, partial(treat_matrix, rules)),
        also_train=also_train,
        settings={**rules.record, **settings},
        fingerprint=fingerprint,
    )


def _checked_also_train(also_train: Mapping[str, int] | None) -> dict[str, int]:
    for name, numel in (also_train or {}).items():
        if isinstance(numel, bool) or not isinstance(numel, int) or numel < 0:
            raise PlanError(f'also_train[{name}]={numel!r}: expected a number of entries')
    return dict(also_train or {})
