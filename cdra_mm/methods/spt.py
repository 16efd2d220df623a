"""SPT: sensitive entries trained singly, or by a small module where they are many.

Sensitivity-aware Visual Parameter-Efficient Fine-Tuning (He et al., ICCV 2023,
Sections 3.2 and 3.3), with the module of LoRA (``spt_lora``) or a bottleneck
(``spt_adapter``).

    top-k of all scores -> n entries of a matrix
        n >= p / alpha     the whole matrix by a module of p parameters (structured)
        otherwise          these n entries alone (unstructured)
    n entries of a vector of length L
        n >= L / beta      the whole vector, otherwise these n entries

Where paper and released code (github.com/ziplab/SPT) differ, or leave a choice:

- *Threshold of a module.* The paper compares n with p; the code with p / alpha,
  alpha = 10 in its scripts. Ours is the code's.
- *Scores.* The code adds the squares of the gradients of the mean losses of 16
  batches of 32, in training mode; the paper speaks of 400 samples. Here the statistic is
  ``per_batch`` unless the hook says otherwise, in evaluation mode; the code's figures are
  ``num_samples=512, batch_size=32`` in the hook.
- *Budget.* The code tries gamma in steps of 0.02 M entries and keeps the plan
  nearest to the budget, above it or below. Here it is the largest plan that does not
  exceed it, over every threshold.
- *What competes.* The code lets the last norm, outside the blocks, compete. Here
  only the blocks do, as for every method. With that norm's vectors added, the totals
  that the authors saved for ViT-B/16 (rank 8) come out to the parameter.
- *q, k and v* are layers of their own in the code. Their matrices are decided upon apart
  here too, but where they are fused their biases are one vector, decided upon as one.
- *Dropout.* The code drops 10 % of the inputs of a module (not of the one beside the
  attention's output) and, unless told not to, 10 % of a module's outputs by sample.
  Here `dropout` does the former for every module; the latter is left out.
- *Scale* of the low-rank branch: 1, no alpha / r of LoRA's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cdra_mm.core import Block, Plan, SparseMatrix, Target, Vector, resolve
from cdra_mm.core.planning.making import trains_whole
from cdra_mm.core.planning.selection import kth_largest, masks_above, requested_count
from cdra_mm.core.planning.threads import one_thread
from cdra_mm.errors import ConfigError

from .base import Request
from .bottleneck import Bottleneck, bottleneck_parts
from .budgets import check_budget, resolved_budget
from .lora import check_dropout, check_rank, whole_block
from .settings import is_number
from .spt_budget import threshold_for_budget

__all__ = ['SPTAdapter', 'SPTLoRA']


@dataclass
class _Records:
    """What is trained, before it is a plan."""

    blocks: list[Block] = field(default_factory=list)
    bottlenecks: list[Target] = field(default_factory=list)
    sparse: list[SparseMatrix] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)


@dataclass(frozen=True)
class _SPT(ABC):
    """What both methods share.

    At most one of the four budgets may be given; with none it is
    ``budget_percent=0.5``.

    Args:
        gamma: Fraction of the competing entries to select.
        num_sensitive: Number of entries to select.
        budget_params: Trainable backbone parameters, a count.
        budget_percent: The same as a percentage of the backbone's parameters.
        rank: Rank of the low-rank modules, width of the bottlenecks.
        alpha: A module is used from ``its parameters / alpha`` selected entries on.
        beta: A vector is trained whole from ``length / beta`` selected entries on.
        dropout: Probability of dropping an input of a module in training.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = True
    statistic: ClassVar[str] = 'per_batch'

    gamma: float | None = None
    num_sensitive: int | None = None
    budget_params: int | None = None
    budget_percent: float | None = None
    rank: int = 8
    alpha: float = 10
    beta: float = 5
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_budget(self)
        check_rank(self.rank)
        check_dropout(self.dropout)
        # Below 1 more entries than the module has parameters would be trained before it: the
        # size of a plan could then shrink with more entries, and no budget search be exact.
        for name in ('alpha', 'beta'):
            value = getattr(self, name)
            if not is_number(value) or value < 1:
                raise ConfigError(f'{name}={value!r}: expected a number of at least 1')

    @abstractmethod
    def module_params(self, shape: tuple[int, int]) -> int:
        """Parameters of the module of a matrix ``[O, I]``."""

    @abstractmethod
    def add_module(self, records: _Records, target: Target, num_sensitive: int) -> None:
        """Notes that a matrix gets a module.

        Raises:
            PlanError: If it cannot have one.
        """

    def num_params(self, shape: tuple[int, ...], num_selected: Tensor) -> Tensor:
        """Trainable parameters of a target by its selected entries, int64, any shape."""
        size, parts = shape[0], self.beta
        if len(shape) == 2:
            size, parts = self.module_params((shape[0], shape[1])), self.alpha
        whole = (num_selected > 0) & (num_selected.double() * parts >= size)
        return torch.where(whole, size, num_selected)

    @one_thread()
    def plan(self, request: Request) -> Plan | None:
        """See `Method.plan`.

        Raises:
            PlanError: If nothing fits the budget, or a module does not fit its matrix.
        """
        scores = request.scores
        budget = resolved_budget(self, request.backbone, request.beside_budget)
        most = budget.pop('budget_params')
        if most is None:
            threshold = kth_largest(scores, requested_count(scores, **budget))
        else:
            threshold = threshold_for_budget(
                scores, most, self.num_params, reserved=sum(request.also_train.values())
            )
        return self.plan_from_masks(request, masks_above(scores, threshold))

    def plan_from_masks(self, request: Request, masks: Iterable[tuple[str, Tensor]]) -> Plan:
        """The plan for given masks.

        Args:
            request: See `Method.plan`; its scores are not read.
            masks: Target names with bool masks, True = selected, one by one.

        Raises:
            PlanError: If a name or a module does not fit the backbone.
        """
        records = _Records()
        num_competing = num_sensitive = 0
        for name, mask in masks:
            count = int(torch.count_nonzero(mask))
            num_competing += mask.numel()
            num_sensitive += count
            if count:
                self._add(records, resolve(request.backbone, name), mask, count)
        parts = bottleneck_parts(request.backbone, records.bottlenecks, self.rank, self.dropout)
        return request.record(
            self,
            blocks=tuple(records.blocks),
            parts=tuple(parts),
            sparse=tuple(records.sparse),
            vectors=tuple(records.vectors),
            also_train=dict(request.also_train),
            num_competing=num_competing,
            num_sensitive=num_sensitive,
        )

    def _add(self, records: _Records, target: Target, mask: Tensor, count: int) -> None:
        if mask.dim() == 1:
            whole = trains_whole(count, len(mask), self.beta)
            indices = None if whole else tuple(torch.nonzero(mask).flatten().tolist())
            records.vectors.append(Vector(target.name, len(mask), indices, count))
            return
        shape = (target.shape[0], target.shape[1])
        if count * self.alpha >= self.module_params(shape):
            self.add_module(records, target, count)
        else:
            indices = tuple(torch.nonzero(mask.flatten()).flatten().tolist())
            records.sparse.append(SparseMatrix(target.name, shape, indices))


@dataclass(frozen=True)
class SPTLoRA(_SPT):
    """SPT-LoRA: the module is LoRA on the whole matrix, of ``rank * (O + I)`` parameters.

    It merges into plain weights. Settings: see `_SPT`.
    """

    name: ClassVar[str] = 'spt_lora'

    def module_params(self, shape: tuple[int, int]) -> int:
        """See `_SPT.module_params`."""
        return self.rank * (shape[0] + shape[1])

    def add_module(self, records: _Records, target: Target, num_sensitive: int) -> None:
        """See `_SPT.add_module`."""
        records.blocks.append(
            whole_block(target, self.rank, num_sensitive=num_sensitive, dropout=self.dropout)
        )


@dataclass(frozen=True)
class SPTAdapter(_SPT):
    """SPT-Adapter: the module is a bottleneck after the matrix's output.

    He et al. put it after q, k, v and both layers of the FFN; beside the attention's
    output their code puts it on the input instead, which only a square matrix allows. Here it
    follows the output everywhere. It does not merge. Settings: see `_SPT`.
    """

    name: ClassVar[str] = 'spt_adapter'

    def module_params(self, shape: tuple[int, int]) -> int:
        """See `_SPT.module_params`."""
        return Bottleneck.count(shape[0], self.rank)

    def add_module(self, records: _Records, target: Target, num_sensitive: int) -> None:
        """See `_SPT.add_module`."""
        records.bottlenecks.append(target)
