"""LoRA: the same low rank on whole matrices (Hu et al., ICLR 2022).

The 0.90 % that the CDRA paper prints for it on FGVC is rank 16 on q and v, 0.69 % of a ViT-B/16,
with the head, 0.21 % on average. The table of FGVC has rank 16 too; shares here leave the head out
(docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdra_mm.core import Block, Plan, Target
from cdra_mm.settings import probability, setting

from .base import Method, Request
from .roles import as_roles, check_rank, matrices_with

__all__ = ['LoRA', 'whole_block']


@dataclass(frozen=True)
class LoRA(Method):
    """Low-Rank Adaptation (Hu et al., ICLR 2022, Section 4.1).

    ``W' = W + alpha / rank * up @ down`` on every matrix with one of the roles.
    ``down`` starts Kaiming-uniform with a = sqrt(5), ``up`` at zero, as the
    authors' loralib, peft and mmpretrain's LoRAModel have it; the paper draws
    ``down`` from a normal distribution.

    In vision transformers q, k and v mostly are one matrix. This adapts its
    parts, each with a ``down`` of its own, as the rows "LoRA" of the VTAB tables
    do (q and v). peft and mmpretrain adapt the fused matrix as one: one ``down``
    for the three, and no way to leave k out. mmpretrain's default alpha is 1,
    peft's is 8; a scale of 1 comes from alpha = rank.

    Args:
        rank: Rank of every adapter.
        alpha: Numerator of the scale ``alpha / rank``.
        dropout: Probability of dropping an input of the low-rank branch in training.
        targets: Roles to adapt: ``q k v proj fc1 fc2``, of a gated FFN ``w1 w2
            w3`` and what else the backbone's targets have; ``'all'`` is every matrix.
    """

    name: ClassVar[str] = 'lora'

    rank: int = setting(8, minimum=1)
    alpha: float = setting(8, above=0)
    dropout: float = probability(0.0)
    targets: str | Sequence[str] = ('q', 'v')

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'targets', as_roles(self.targets))

    def plan(self, request: Request) -> Plan | None:
        """Adapts the matrices of the roles; nothing else is trained. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no matrix of a role, or a matrix is
                smaller than the rank.
        """
        scale = self.alpha / self.rank
        return request.record(
            self,
            blocks=tuple(
                whole_block(target, self.rank, scale=scale, dropout=self.dropout)
                for target in matrices_with(request, self.targets)
            ),
        )


def whole_block(
    target: Target, rank: int, *, num_sensitive: int = 0, scale: float = 1.0, dropout: float = 0.0
) -> Block:
    """The low-rank adapter of all rows and columns of a matrix.

    Raises:
        PlanError: If the matrix is smaller than the rank.
    """
    check_rank(target, rank)
    rows, cols = target.shape
    return Block(
        target.name,
        (rows, cols),
        tuple(range(rows)),
        tuple(range(cols)),
        rank,
        num_sensitive,
        float(scale),
        float(dropout),
    )
