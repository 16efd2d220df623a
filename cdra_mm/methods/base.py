"""The contract of a fine-tuning method.

A method looks at a backbone, and at scores when it asks for them, and says what
is trained. That is all: the framework scores, applies the plan, rebuilds the
optimizer and writes checkpoints, the same for every method. A new method is one
file with one dataclass, plus one line in `cdra_mm.methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cdra_mm.core import Plan

__all__ = ['Method', 'Request', 'Trials']


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

    Attributes:
        backbone: The backbone with its pretrained weights.
        scores: Scores by target name; empty unless the method needs them.
        also_train: Parameters that a method which selects trains whole besides, name -> entries.
        settings: Plain values that the plan keeps: how the scores came about.
        fingerprint: Fingerprint of the base weights.
        trials: Where plans can be tried out; None unless the method needs a search.
        beside_budget: How many entries of `also_train` stand outside of the budget.
    """

    backbone: nn.Module
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    also_train: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ''
    trials: Trials | None = None
    beside_budget: int = 0

    def record(self, method: Any, **trained: Any) -> Plan:
        """The plan of a method, with its settings beside those of the run.

        Args:
            method: A method, a dataclass.
            **trained: The records of what is trained; see `Plan`.
        """
        return Plan(
            method=method.name,
            settings={**self.settings, **asdict(method)},
            fingerprint=self.fingerprint,
            **trained,
        )


class Method(Protocol):
    """A dataclass of plain settings with one decision to make.

    Attributes:
        name: Its name in configs and tables.
        needs_scores: Whether `plan` wants sensitivity scores (Eq. 3).

    A method that is scored in its own way says so by two more attributes: ``statistic``
    (``'per_batch'``; default ``'per_sample'``, and the hook's setting goes first) and
    ``score_loss`` (``'supervised_contrastive'``; default ``'task'``, the training loss). One in
    which not all scores compete says which do by ``competing(backbone, scores)``.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool]

    def plan(self, request: Request) -> Plan | None:
        """Decides what is trained.

        Returns:
            The plan, or None to train the whole backbone.

        Raises:
            PlanError: If the method cannot apply to this backbone.
        """
        ...
