"""CDRA: compact dynamic-rank adaptation of the sensitive entries (CDRA-SPT, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from cdra_mm.core import Plan, find_targets, make_plan
from cdra_mm.core.planning.ablations import Ablation
from cdra_mm.core.planning.by_gradient import plan_by_gradient, start_of
from cdra_mm.core.planning.offers import CURRENCIES, GradientRules
from cdra_mm.core.planning.rules import Rules
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.settings import setting

from .base import Request
from .budgets import Selecting

__all__ = ['CDRA', 'settings_beside']

# What all can compete, beside single roles.
COMPETE = ('all', 'matrices', 'vectors')

GRADIENT_ONLY = ('max_rank', 'start')
GRADIENT_TAKES = {'allocation', 'budget_params', 'budget_percent', 'compete', *GRADIENT_ONLY}


def settings_beside(settings: Mapping[str, Any], statistic: str | None) -> dict[str, Any]:
    """Settings of `CDRA` as a user wrote them, with the allocation that they ask for.

    A statistic of scores asks for ``allocation='scores'``, and so does a setting of the paper's
    steps, also at its default: the rows of a sweep over it are of one method.

    Args:
        settings: As they are given; None is not given.
        statistic: As it is given beside them.
    """
    if settings.get('allocation') is not None:
        return dict(settings)
    given = {name for name, value in settings.items() if value is not None}
    default = {field.name: field.default for field in fields(CDRA)}
    of_steps = given & (default.keys() - GRADIENT_TAKES)
    # Beside a setting by gradients `CDRA` says that they do not go together, and names both.
    # (A command line reads a quadrant as a number.)
    changed = {n for n in of_steps if default[n] not in (settings[n], str(settings[n]))}
    told = changed and given & set(GRADIENT_ONLY)
    if (of_steps and not told) or statistic not in (None, 'mean_gradient'):
        return {**settings, 'allocation': 'scores'}
    return dict(settings)


@dataclass(frozen=True)
class CDRA(Selecting):
    """CDRA by the mean gradient (ours, the default), CDRA-SPT (the paper's) and its ablations.

    The default was chosen on validation images of six tasks, the dense ones with a fitted head as
    well; docs/results.md says what it is worth on five others. Every setting of the paper's steps
    1 to 3 (Eqs. 3 to 7) takes the paper's scores, as ``allocation='scores'`` does: that is
    CDRA-SPT, its ranks by Eq. 7 to the letter under a budget in trained parameters. With about as
    many selected entries as the paper must have had, the printed rule trains a fifth of what its
    Table 4 states; no single rule gives the shares of Table 7 as well (docs/table4.md). Every one
    of the four budgets holds for every ablation.

    ====================  ==========================================================
    CDRA-SPT              ``allocation='scores'``
    Table 4               ``rank_rule=8``, ``16``, ``32``
    Table 5               ``case1=False``, ``case2=False``
    Table 6               ``size_ratio=1.5``, ``0.5``
    Table 7               ``quadrant='00'``, ``'11'``, ``'01'``
    ours                  ``rank_rule='count'``, ``rank_alpha``, ``min_rank``, ``compete``;
                          in the hook ``statistic='per_batch'``; by the mean gradient
                          ``allocation='descent'``, ``'energy'``, ``max_rank``, ``start``
    ====================  ==========================================================

    Args:
        gamma: See `Selecting`, as for the other budgets.
        rank_rule: ``'eq7'`` (default), ``'count'`` or a fixed rank.
        min_rank: Rank of a block whose rule gives less; 0 freezes it.
        beta: A vector is trained whole from ``length / beta`` selected entries on.
        compete: What competes: ``'all'``, ``'matrices'``, ``'vectors'``, or roles such as
            ``['q', 'v', 'fc1', 'bias']`` (see `Target.role`).
        case1: Whether CDRA takes the matrices with few selected entries (Eq. 1's case 1);
            otherwise these entries are trained alone.
        case2: Likewise those with many; otherwise LoRA on the whole matrix.
        alpha: For case 2, ``LoRA's parameters / alpha`` selected entries are many. 10 is SPT's
            released code; the papers' text says 1.
        lora_rank: Rank of that LoRA.
        size_ratio: Sides of the adapted block over those of the compact block.
        quadrant: The part of the matrix that is adapted: ``'10'`` R x C, ``'00'`` not-R x C,
            ``'11'`` R x not-C, ``'01'`` neither.
        rank_alpha: Factor on the selected entries in a rule for ranks; 1 is Eq. 7 as it is printed.
        allocation: What decides on blocks, ranks and vectors: ``'descent'``, ours: how much a
            first step of Adam would lower the loss per trained parameter, or ``'energy'``, its
            squared length, both by the mean gradient (`cdra_mm.core.planning.offers`); or
            ``'scores'``, the paper's steps 1 to 3. The first two take budgets in parameters or
            percent, and `compete`; the other settings above are of the paper's steps. Default:
            ``'scores'`` where one of them is given that is not at its default (or `gamma` or
            `num_sensitive`; in a config, also at its default), ``'descent'`` otherwise.
        max_rank: Largest rank of a block by the mean gradient.
        start: Of ``down``: ``'random'``, LoRA's, or ``'gradient'``, along the leading right
            singular vectors of the block's mean gradient; by the mean gradient only, and its
            default.
    """

    name: ClassVar[str] = 'cdra'
    added: ClassVar[Mapping[str, Any]] = {
        'rank_alpha': 1,
        'allocation': 'scores',
        'max_rank': 8,
        'start': 'random',
    }

    rank_rule: str | int | None = None
    min_rank: int = 0
    beta: float = 5
    compete: str | Sequence[str] = 'all'
    case1: bool = True
    case2: bool = True
    alpha: float = 10
    lora_rank: int = 8
    size_ratio: float = 1.0
    quadrant: str | int = '10'
    rank_alpha: float = 1
    allocation: str | None = setting(None, choices=(*CURRENCIES, 'scores', None))
    max_rank: int = setting(8, minimum=1)
    start: str | None = setting(None, choices=('gradient', 'random', None))

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.quadrant, int):  # a command line reads 00 as a number
            object.__setattr__(self, 'quadrant', f'{self.quadrant:02d}')
        roles = [self.compete] if isinstance(self.compete, str) else self.compete
        if not roles:
            raise ConfigError(
                f'compete={self.compete!r}: expected {", ".join(map(repr, COMPETE))}, or roles'
            )
        if not isinstance(self.compete, str):
            object.__setattr__(self, 'compete', list(roles))  # as it comes back from JSON
        self._decide_allocation()
        try:
            Rules(self.rule, self.min_rank, self.beta, self.ablation, self.rank_alpha)
        except PlanError as error:
            raise ConfigError(str(error)) from None

    def _decide_allocation(self) -> None:
        """Fills in what is not given, and refuses what does not go together."""
        default = {field.name: field.default for field in fields(self)}
        given = {name for name, value in default.items() if getattr(self, name) != value}
        of_scores = given - GRADIENT_TAKES
        # What an instance by gradients has is no wish for scores: `dataclasses.replace` gives it.
        if self.allocation in CURRENCIES and self.rank_rule == 'eq7':
            of_scores -= {'rank_rule'}
        allocation = self.allocation or ('scores' if of_scores else 'descent')
        by_gradient = allocation in CURRENCIES
        of_gradients = given & set(GRADIENT_ONLY) - ({'start'} if self.start == 'random' else set())
        foreign = sorted(of_scores if by_gradient else of_gradients)
        if foreign:
            name = foreign[0]
            other = 'scores' if by_gradient else 'descent'
            if self.allocation is None:
                why = f'goes with allocation={other!r}, {sorted(of_scores)[0]} with {allocation!r}'
            else:
                why = f'not used with allocation={allocation!r}'
            raise ConfigError(
                f'{name}={getattr(self, name)!r}: {why}; leave it out, or set allocation={other!r}'
            )
        start = self.start or ('gradient' if by_gradient else 'random')
        decided: dict[str, Any] = {'allocation': allocation, 'start': start}
        decided['rank_rule'] = 'eq7' if self.rank_rule is None else self.rank_rule
        for name, value in decided.items():
            object.__setattr__(self, name, value)

    @property
    def rule(self) -> str | int:
        """The rank rule; by now it is decided."""
        assert self.rank_rule is not None
        return self.rank_rule

    @property
    def by_gradient(self) -> bool:
        """Whether blocks, ranks and vectors come from the mean gradient."""
        return self.allocation in CURRENCIES

    @property
    def statistic(self) -> str:
        """See `Method.statistic`."""
        return 'mean_gradient' if self.by_gradient else 'per_sample'

    @property
    def needs_start(self) -> bool:
        """See `Method.needs_start`."""
        return self.start == 'gradient'

    def first_factors(self, plan: Plan, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Method.first_factors`."""
        return start_of(plan, scores) if self.needs_start else {}

    @property
    def ablation(self) -> Ablation:
        """How matrices are treated otherwise than by the method."""
        return Ablation(**{field.name: getattr(self, field.name) for field in fields(Ablation)})

    def plan(self, request: Request) -> Plan | None:
        """See `Method.plan`.

        Raises:
            ConfigError: If `compete` names a role that the backbone does not have.
            PlanError: See `make_plan`.
        """
        if self.by_gradient:
            return plan_by_gradient(
                self.competing(request.backbone, request.scores),
                self.budget_on(request.backbone, request.beside_budget)['budget_params'],
                GradientRules(str(self.allocation), max_rank=self.max_rank),
                also_train=request.also_train,
                settings={
                    **request.settings,
                    **{name: getattr(self, name) for name in sorted(GRADIENT_TAKES)},
                },
                fingerprint=request.fingerprint,
            )
        scores = self.competing(request.backbone, request.scores)
        budget = self.budget_on(request.backbone, request.beside_budget)
        if budget.get('budget_params') is not None and all(s.dim() == 1 for s in scores.values()):
            raise PlanError(
                f"compete={self.compete!r}: no matrix competes, and by allocation='scores' a "
                "budget is met by the ranks of matrices; set allocation='descent', or gamma"
            )
        optional = {'compete', *(field.name for field in fields(Ablation))}
        changed = {*self.ablation.changes, *(['compete'] if self.compete != 'all' else [])}
        own = {
            name: value
            for name, value in self.recorded.items()
            if name not in optional or name in changed
        }
        return make_plan(
            scores,
            **budget,
            rank_rule=self.rule,
            min_rank=self.min_rank,
            beta=self.beta,
            ablation=self.ablation,
            rank_alpha=self.rank_alpha,
            also_train=request.also_train,
            settings={**request.settings, **own},
            fingerprint=request.fingerprint,
        )

    def competing(self, backbone: nn.Module, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Method.competing`."""
        if self.compete == 'all':
            return scores
        if self.compete in COMPETE:
            dim = 2 if self.compete == 'matrices' else 1
            return {name: score for name, score in scores.items() if score.dim() == dim}
        wanted = [self.compete] if isinstance(self.compete, str) else self.compete
        roles = {name: target.role for name, target in find_targets(backbone).items()}
        known = list(dict.fromkeys(roles.values()))
        for role in wanted:
            if role not in known:
                raise ConfigError(
                    f'compete: {role!r} is no role of {type(backbone).__name__}: expected some of '
                    f'{", ".join(known)}, or {", ".join(map(repr, COMPETE))}'
                )
        return {name: score for name, score in scores.items() if roles[name] in wanted}
