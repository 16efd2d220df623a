"""How a run comes by its plan: scores on its own data, a method's decision, or a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core import ConfigError, Plan, fingerprint
from cdra_mm.methods import Method

from .scoring import score_backbone

__all__ = ['RunPlanner', 'read_plan', 'same_everywhere']


@dataclass
class RunPlanner:
    """Makes the plan of a run.

    Attributes:
        method: What decides.
        num_samples: Training samples to score.
        batch_size: Samples per batch while scoring; None for the training loader's.
        statistic: ``'per_sample'`` or ``'per_batch'``; None for the method's own.
        also_train: Backbone parameters that are trained whole, where they exist.
        seed: Seed of the samples drawn and their augmentations.
        path: A plan file to use instead.
        seconds: What scoring took.

    Raises:
        ConfigError: If a setting is out of range.
    """

    method: Method
    num_samples: int
    batch_size: int | None
    statistic: str | None
    also_train: Sequence[str]
    seed: int
    path: str | None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (('num_samples', self.num_samples), ('batch_size', self.batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f'{name}={value!r}: expected a count of at least 1')
        self.statistic = self.statistic or getattr(self.method, 'statistic', 'per_sample')
        if self.statistic not in ('per_sample', 'per_batch'):
            raise ConfigError(f'statistic={self.statistic!r}: expected per_sample or per_batch')
        also = self.also_train
        self.also_train = (also,) if isinstance(also, str) else tuple(also)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs train the same thing; plain types."""
        settings = {f'method.{key}': value for key, value in asdict(self.method).items()}  # type: ignore[call-overload]
        if self.method.needs_scores:
            settings |= {'num_samples': self.num_samples, 'statistic': self.statistic}
            settings |= {'also_train': list(self.also_train), 'seed': self.seed}
        return {'method': self.method.name, **settings}

    def plan(self, runner: Runner, backbone: nn.Module) -> Plan | None:
        """The plan for a backbone with its pretrained weights, the same on every rank.

        Returns:
            The plan, or None to train the whole backbone.
        """
        if self.path:
            return read_plan(self.path)
        scores, num_samples = None, 0
        if self.method.needs_scores:
            begin = time.time()
            scores, num_samples = score_backbone(
                runner,
                backbone,
                num_samples=self.num_samples,
                batch_size=self.batch_size,
                statistic=str(self.statistic),
                seed=self.seed,
                score_loss=getattr(self.method, 'score_loss', 'task'),
            )
            self.seconds = time.time() - begin
        how = {'statistic': self.statistic, 'num_samples': num_samples, 'seed': self.seed}
        own = dict(backbone.named_parameters())
        plan = self.method.plan(
            backbone,
            scores,
            also_train={name: own[name].numel() for name in self.also_train if name in own},
            settings=how if self.method.needs_scores else {},
            fingerprint=fingerprint(backbone) if self.method.needs_scores else '',
        )
        return same_everywhere(plan)


def read_plan(path: str | Path) -> Plan:
    """Reads a plan file.

    Raises:
        ConfigError: If it cannot be read.
        PlanError: If it is no plan.
    """
    try:
        return Plan.from_json(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'plan={str(path)!r} cannot be read: {error}') from None


def same_everywhere(plan: Plan | None) -> Plan | None:
    """The plan of rank 0: rounding may differ between processes."""
    text = plan.to_json().encode() if plan is not None else b''
    size = torch.tensor(len(text))
    broadcast(size)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if len(text) == int(size) and text:
        buffer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    broadcast(buffer)
    return Plan.from_json(bytes(buffer.tolist()).decode()) if int(size) else None
