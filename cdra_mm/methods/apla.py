"""APLA: the output projection of every attention is trained (Sorkhei et al., arXiv 2503.11335).

    out = concat(heads) W_O + b_O        W_O and b_O are trained, all of them or r outputs each

Nothing is added to the model. The whole form trains the weights in place; the partial form trains
r of the outputs, chosen at random once for each layer: columns of the paper's W_O, which are rows
``[r, E]`` of the weight of an ``nn.Linear``, and their entries of the bias.

Where the released code (MoeinSorkhei/APLA) and this differ:

- The code draws the outputs of a layer from the global random state; here they follow `seed`.
- The code trains the chosen rows themselves, so that weight decay pulls them to zero. Here what is
  added to them is trained, as every part of a weight is: weight decay pulls to the base.
- Its code for segmentation and detection knows the whole form only.
- Swin has an output projection in every block, trained here as there; layers between stages stay
  frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, Part, Plan, Target, Vector, find_targets, register_kind
from cdra_mm.core.adapters.low_rank import check_index, master_dtype
from cdra_mm.core.model.targets import parameter_of
from cdra_mm.errors import PlanError
from cdra_mm.settings import count

from .base import Method, Request

__all__ = ['APLA', 'Rows']


@register_kind
class Rows(ParameterAdapter):
    """What is added to some rows of a matrix: ``W'[rows] = W[rows] + value``.

    Args:
        target: The matrix ``[O, I]``.
        like: Its parameter, which gives device and floating type.
        rows: The rows in rising order, as text: ``'3 17 64'``.
    """

    kind = 'rows'
    trains_entries = True

    rows: Tensor

    def __init__(self, target: Target, like: Tensor, rows: str) -> None:
        super().__init__(target.parameter)
        if len(target.shape) != 2:
            raise ValueError(f'{target.name} is no matrix')
        index = torch.tensor([int(row) for row in rows.split()], dtype=torch.int64, device='cpu')
        check_index(index, target.shape[0], 'rows')
        if bool((index.diff() <= 0).any()):
            raise ValueError('rows are not in rising order')
        self.register_buffer('rows', (index + target.start).to(like.device), persistent=False)
        new: dict[str, Any] = dict(device=like.device, dtype=master_dtype(like))
        self.value = nn.Parameter(torch.zeros(len(index), target.shape[1], **new))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Zero: the rows start at their base values."""
        self.value.zero_()

    def added_to(self, base: Tensor) -> Tensor:
        """See `ParameterAdapter.added_to`."""
        wide = base.index_select(0, self.rows) + self.value  # rounded once
        return base.index_copy(0, self.rows, wide.to(base.dtype))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'{self.parameter}, {len(self.rows)} rows'


@dataclass(frozen=True)
class APLA(Method):
    """Attention Projection Layer Adaptation.

    Attributes:
        partial_size: r, the outputs of each projection that are trained; None trains all.
        seed: Of the choice of outputs.
    """

    name: ClassVar[str] = 'apla'

    partial_size: int | None = count(None)
    seed: int = count(0, minimum=0)

    def plan(self, request: Request) -> Plan | None:
        """The output projections with their biases. See `Method.plan`.

        A whole weight in half precision is trained as all of its rows, in fp32 beside it.

        Raises:
            PlanError: If the backbone has no output projection, or a smaller one.
        """
        backbone = request.backbone
        allowed = request.targets()
        everywhere = find_targets(backbone)
        projections = [target for target in everywhere.values() if _is_projection(target)]
        chosen = {target.name: rows for target, rows in self._chosen(projections)}
        biases = {t.module: t for t in allowed.values() if t.role == 'bias' and not t.part}
        parts: list[Part] = []
        vectors: list[Vector] = []
        whole: dict[str, int] = {}
        for target in projections:
            rows = chosen[target.name]
            weight = parameter_of(backbone, target)
            if target.name in allowed:
                if self.partial_size is None and weight.dtype == master_dtype(weight):
                    whole[target.path] = target.numel
                else:
                    text = ' '.join(map(str, rows))
                    number = len(rows) * target.shape[1]
                    parts.append(Part(target.name, Rows.kind, {'rows': text}, number))
            bias = biases.get(target.module)
            if bias is not None:
                indices = None if self.partial_size is None else tuple(rows)
                vectors.append(Vector(bias.name, bias.numel, indices, len(rows)))
        if not parts and not vectors and not whole:
            raise PlanError(
                f'{type(backbone).__name__} has no output projection of an attention that may be '
                'trained: use another method for this backbone'
            )
        return request.record(self, parts=tuple(parts), vectors=tuple(vectors), also_train=whole)

    def _chosen(self, projections: list[Target]) -> Iterator[tuple[Target, list[int]]]:
        """Each projection with its trained rows; the same whatever of them may be trained."""
        generator = torch.Generator().manual_seed(self.seed)
        for target in projections:
            height = target.shape[0]
            if self.partial_size is None:
                yield target, list(range(height))
                continue
            if self.partial_size > height:
                raise PlanError(
                    f'{target.name} has {height} outputs: expected partial_size='
                    f'{self.partial_size} to be at most that'
                )
            rows = torch.randperm(height, generator=generator, device=generator.device)
            yield target, sorted(rows[: self.partial_size].tolist())


def _is_projection(target: Target) -> bool:
    return target.role == 'proj' and len(target.shape) == 2
