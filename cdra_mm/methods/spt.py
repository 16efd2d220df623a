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
- *Figures.* The code's scripts try five budgets for each task on the test images and report the
  best epoch's figure; the tables here have one budget and the last epoch. On FGVC they train on
  train.json alone; ``--final`` here takes train and val, unless told otherwise (docs/methods.md).
- *Scale* of the low-rank branch: 1, no alpha / r of LoRA's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cdra_mm.core import Plan, SparseMatrix, Target, resolve
from cdra_mm.core.planning.budget import threshold_for_budget
from cdra_mm.core.planning.cases import are_many, num_trained
from cdra_mm.core.planning.selection import kth_largest, masks_above, requested_count
from cdra_mm.core.planning.threads import one_thread
from cdra_mm.core.planning.treatment import single_entries, treat_all
from cdra_mm.settings import probability, setting

from .base import Request
from .bottleneck import Bottleneck, bottleneck_parts
from .budgets import Selecting
from .lora import whole_block

__all__ = ['SPTAdapter', 'SPTLoRA']


@dataclass(frozen=True)
class _SPT(Selecting):
    """What both methods share.

    Args:
        gamma: See `Selecting`, as for the other budgets.
        rank: Rank of the low-rank modules, width of the bottlenecks.
        alpha: A module is used from ``its parameters / alpha`` selected entries on.
        beta: A vector is trained whole from ``length / beta`` selected entries on.
        dropout: Probability of dropping an input of a module in training.
    """

    rank: int = setting(8, minimum=1)
    # Below 1 more entries than the module has parameters would be trained before it: the size of
    # a plan could then shrink with more entries.
    alpha: float = setting(10, minimum=1)
    beta: float = setting(5, minimum=1)
    dropout: float = probability(0.1)

    @property
    def statistic(self) -> str:
        """See `Method.statistic`."""
        return 'per_batch'

    @abstractmethod
    def module_params(self, shape: tuple[int, ...]) -> int:
        """Parameters of the module of a matrix ``[O, I]``."""

    @abstractmethod
    def module_records(
        self, backbone: nn.Module, modules: Sequence[tuple[Target, int]]
    ) -> dict[str, Any]:
        """What the plan holds of the modules, as arguments of `Plan`.

        Args:
            backbone: The plain backbone.
            modules: The matrices that get one, with their selected entries.

        Raises:
            PlanError: If one cannot have it.
        """

    def num_params(self, shape: tuple[int, ...], num_selected: Tensor) -> Tensor:
        """Trainable parameters of a target by its selected entries, int64, any shape."""
        if len(shape) == 1:
            return num_trained(num_selected, shape[0], self.beta)
        return num_trained(num_selected, self.module_params(shape), self.alpha)

    @one_thread()
    def plan(self, request: Request) -> Plan | None:
        """See `Method.plan`.

        Raises:
            PlanError: If nothing fits the budget, or a module does not fit its matrix.
        """
        scores = request.scores
        budget = self.budget_on(request.backbone, request.beside_budget)
        most = budget.pop('budget_params')
        if most is None:
            threshold = kth_largest(scores, requested_count(scores, **budget))
        else:

            def size_at(name: str, _: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
                return self.num_params(tuple(scores[name].shape), number), (number > 0).long()

            reserved = sum(request.also_train.values())
            threshold = threshold_for_budget(
                scores, most, size_at, reserved=reserved, most_entries=True
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
        modules: list[tuple[Target, int]] = []

        def treat(name: str, mask: Tensor, number: int, _: Any) -> SparseMatrix | None:
            if not are_many(number, self.module_params(tuple(mask.shape)), self.alpha):
                return single_entries(name, mask)
            modules.append((resolve(request.backbone, name), number))
            return None

        records = treat_all(masks, self.beta, treat)
        records |= self.module_records(request.backbone, modules)
        return request.record(self, **records, also_train=dict(request.also_train))


@dataclass(frozen=True)
class SPTLoRA(_SPT):
    """SPT-LoRA: the module is LoRA on the whole matrix, of ``rank * (O + I)`` parameters.

    It merges into plain weights. Settings: see `_SPT`.
    """

    name: ClassVar[str] = 'spt_lora'

    def module_params(self, shape: tuple[int, ...]) -> int:
        """See `_SPT.module_params`."""
        return self.rank * (shape[0] + shape[1])

    def module_records(
        self, backbone: nn.Module, modules: Sequence[tuple[Target, int]]
    ) -> dict[str, Any]:
        """See `_SPT.module_records`."""
        blocks = (
            whole_block(target, self.rank, num_sensitive=number, dropout=self.dropout)
            for target, number in modules
        )
        return {'blocks': tuple(blocks)}


@dataclass(frozen=True)
class SPTAdapter(_SPT):
    """SPT-Adapter: the module is a bottleneck after the matrix's output.

    He et al. put it after q, k, v and both layers of the FFN; beside the attention's
    output their code puts it on the input instead, which only a square matrix allows. Here it
    follows the output everywhere. It does not merge. Settings: see `_SPT`.
    """

    name: ClassVar[str] = 'spt_adapter'

    def module_params(self, shape: tuple[int, ...]) -> int:
        """See `_SPT.module_params`."""
        return Bottleneck.count(shape[0], self.rank)

    def module_records(
        self, backbone: nn.Module, modules: Sequence[tuple[Target, int]]
    ) -> dict[str, Any]:
        """See `_SPT.module_records`."""
        targets = [target for target, _ in modules]
        return {'parts': tuple(bottleneck_parts(backbone, targets, self.rank, self.dropout))}
