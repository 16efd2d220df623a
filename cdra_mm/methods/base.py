"""The contract of a fine-tuning method.

A method looks at a backbone, and at scores when it asks for them, and says what
is trained. That is all: the framework scores, applies the plan, rebuilds the
optimizer and writes checkpoints, the same for every method. A new method is one
file with one dataclass, plus one line in `cdra_mm.methods.METHODS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from cdra_mm.core import CallAdapter, Plan, Target, find_layers, find_targets, resolve
from cdra_mm.core.adapters.adapter import find_kind
from cdra_mm.errors import PlanError
from cdra_mm.settings import check_settings

__all__ = ['FROZEN', 'UNREACHED', 'Method', 'Request', 'Trials']

# Why a parameter is not for a method to train.
FROZEN = 'the backbone freezes it itself'
UNREACHED = 'the training loss does not depend on it'

_T = TypeVar('_T')


class Trials(Protocol):
    """A run as a place to try out plans, for methods that search for theirs (NOAH).

    Attributes:
        seed: Seed of the run's planning.
    """

    seed: int

    def train(
        self,
        largest: Plan,
        draw: Callable[[], Plan],
        *,
        epochs: int,
        iters: int | None,
        lr_mult: float,
        held_out: float,
        max_held_out: int,
    ) -> None:
        """Trains the adapters of `largest` on the run's data, at each iteration as a drawn plan's.

        Args:
            largest: A plan that holds all that are drawn (see `sharing`).
            draw: Gives the plan of the next iteration.
            epochs: Passes over the training samples that are not held out.
            iters: Iterations instead.
            lr_mult: Learning rates over those of the run.
            held_out: Share of the training samples that is kept for `fitness`.
            max_held_out: The most samples of it.
        """
        ...

    def fitness(self, plan: Plan) -> float:
        """What a plan is worth on the held-out samples, with what was trained; more is better."""
        ...


@dataclass(frozen=True)
class Request:
    """What a run asks of its method.

    A method takes blocks, targets and parameters from here, not from the backbone: what is
    withheld is then left out of every method in the same way.

    Attributes:
        backbone: The backbone with its pretrained weights.
        scores: Scores by target name; empty unless the method needs them.
        also_train: Parameters that a method which selects trains whole besides, name -> entries.
        settings: Plain values that the plan keeps: how the scores came about.
        fingerprint: Fingerprint of the base weights.
        trials: Where plans can be tried out; None unless the method needs a search.
        withheld: Backbone parameters that no method may train or adapt, name -> why (`FROZEN`,
            `UNREACHED`).
        beside_budget: How many entries of `also_train` stand outside of the budget.
    """

    backbone: nn.Module
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    also_train: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ''
    trials: Trials | None = None
    withheld: Mapping[str, str] = field(default_factory=dict)
    beside_budget: int = 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the backbone that may be trained, in module order.

        Raises:
            PlanError: If all are withheld.
        """
        own = dict(self.backbone.named_parameters())
        return self._left({name: p for name, p in own.items() if name not in self.withheld})

    def targets(self) -> dict[str, Target]:
        """What may be trained of `find_targets`.

        Raises:
            PlanError: If the backbone has no target, or all are withheld.
        """
        targets = find_targets(self.backbone)
        return self._left({n: t for n, t in targets.items() if t.path not in self.withheld})

    def layers(self) -> list[str]:
        """What may carry adapters of `find_layers`: layers with a parameter that may be trained.

        Raises:
            PlanError: If all are withheld.
        """
        return list(self._left({p: None for p in find_layers(self.backbone) if self.carries(p)}))

    blocks = layers  # its name for methods of earlier releases

    def carries(self, path: str) -> bool:
        """Whether a module may carry an adapter of its calls.

        The backbone itself may: what it gives to its head reaches the loss.
        """
        own = [n for n, _ in self.backbone.named_parameters() if n.startswith(f'{path}.')]
        return not path or not own or any(name not in self.withheld for name in own)

    def check(self, plan: Plan) -> None:
        """Checks that a plan trains and adapts nothing that is withheld.

        Raises:
            PlanError: Names the first parameter, and why.
        """
        named = [block.name for block in plan.blocks] + [vector.name for vector in plan.vectors]
        named += [matrix.name for matrix in plan.sparse]
        refused = [name for name in plan.also_train if name in self.withheld]
        for part in plan.parts:
            if not issubclass(find_kind(part.kind), CallAdapter):
                named.append(part.name)
            elif not self.carries(part.name.rpartition('.')[0]):
                inside = part.name.rpartition('.')[0] + '.'
                refused.append(next(name for name in self.withheld if name.startswith(inside)))
        paths = (resolve(self.backbone, name).path for name in named)
        refused += [path for path in paths if path in self.withheld]
        if refused:
            raise PlanError(
                f'the plan trains or adapts {len(refused)} parameters that cannot be trained here '
                f'(the first is {refused[0]}: {self.withheld[refused[0]]}): make a new plan, or '
                'have the backbone as it was when the plan was made'
            )

    def _left(self, found: dict[str, _T]) -> dict[str, _T]:
        """What was found, unless everything is withheld."""
        if found or not self.withheld:
            return found
        number = list(self.withheld.values()).count
        raise PlanError(
            f'nothing is left to train in {type(self.backbone).__name__}: it freezes '
            f'{number(FROZEN)} of its parameters itself (frozen_stages, requires_grad or its '
            f'train()), and the training loss does not depend on {number(UNREACHED)} others '
            "(out_indices, no_grad); take that out of its config, or use the method 'linear'"
        )

    def record(self, method: Method, **trained: Any) -> Plan:
        """The plan of a method, with its settings beside those of the run."""
        return Plan(
            method=method.name,
            settings={**self.settings, **method.recorded},
            fingerprint=self.fingerprint,
            **trained,
        )


@dataclass(frozen=True)
class Method(ABC):
    """A frozen dataclass of plain settings with one decision to make.

    Ranges are declared with the settings (`cdra_mm.settings`) and checked when one is made.

    Attributes:
        name: Its name in configs and tables.
        needs_scores: Whether `plan` wants sensitivity scores (Eq. 3).
        needs_search: Whether `plan` tries plans out (`Request.trials`).
        trains_inside: Whether it trains chosen weights or blocks of the backbone, so that it
            matters which of them the training loss depends on.
        statistic: How it is scored unless the hook says so: ``'per_sample'``, ``'per_batch'`` or
            ``'summed'`` (see `estimate_scores`).
        added: Settings that earlier releases lacked, with the values of what these did. Plans and
            checkpoints name them where they differ, so that older ones go on.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = False
    needs_search: ClassVar[bool] = False
    trains_inside: ClassVar[bool] = True
    statistic: ClassVar[str] = 'per_sample'
    added: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that plans and checkpoints name; see `added`."""
        given = asdict(self)
        new = {name for name in given if name not in self.added or given[name] != self.added[name]}
        return {name: value for name, value in given.items() if name in new}

    @property
    def score_loss(self) -> str:
        """Of what it is scored: the training loss, or ``'supervised_contrastive'``."""
        return 'task'

    def competing(self, backbone: nn.Module, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The scores of what competes on a backbone; all, unless a setting leaves some out."""
        return scores

    @abstractmethod
    def plan(self, request: Request) -> Plan | None:
        """Decides what is trained.

        Returns:
            The plan, or None to train the whole backbone.

        Raises:
            PlanError: If the method cannot apply to this backbone.
        """
