"""Plans with the block sizes of the papers, or of a file of real masks.

``paper``: the CDRA-SPT paper reports, for a ViT-B/16 and averaged over matrices, compact blocks of
121 to 221 rows and 384 to 567 columns on its data sets, and ranks near 10.

``spt``: the blocks of the masks that SPT released for a ViT-B/16 are tall and narrow
(docs/spt_masks.md), with ranks of 1 to 6 by the count rule.

Both are drawn per matrix, with a seed, and scaled with the model's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cdra_mm.core import Block, Plan, Target, adapters, apply_plan, find_targets, plan_from_masks
from cdra_mm.errors import ConfigError
from cdra_mm.reading import read_masks

__all__ = ['KINDS', 'Sizes', 'adapt', 'drawn_plan', 'label', 'make_block_plan', 'masked_plan']

VIT_B_WIDTH = 768


@dataclass(frozen=True)
class Sizes:
    """Block sizes on a ViT-B, bounds included.

    Attributes:
        rows: Least and most rows.
        cols: Least and most columns, and in which power the draw is bent towards the least.
        bend: 1 draws columns evenly; more makes narrow ones likelier.
        rank: Rank of every block.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    bend: float
    rank: int


# The bend of `spt` gives a mean of 36 columns: 14 + 56 / (1 + 1.55).
KINDS = {
    'paper': Sizes((121, 221), (384, 567), 1.0, 10),
    'spt': Sizes((120, 280), (14, 70), 1.55, 2),
}


def make_block_plan(model: nn.Module, blocks: str, *, seed: int = 0) -> Plan:
    """The plan of a kind of blocks for a model.

    Args:
        model: The plain model.
        blocks: A key of `KINDS`, or a mask file: ``PATH.npz`` or ``PATH.npz@BUDGET``.
        seed: Seed of the draws.

    Raises:
        ConfigError: If the masks do not fit the model.
        DataError: If the mask file cannot be read.
    """
    if blocks in KINDS:
        return drawn_plan(model, KINDS[blocks], seed=seed)
    path, _, budget = blocks.partition('@')
    budgets = read_masks(Path(path))
    if not budgets:
        raise ConfigError(f'{path} holds no matrix mask')
    # The largest number of masked matrices, where no budget is named.
    budget = budget or max(budgets, key=lambda key: len(budgets[key]))
    if budget not in budgets:
        raise ConfigError(f'{path} has no budget {budget!r}: expected {", ".join(budgets)}')
    return masked_plan(model, budgets[budget], path)


def label(blocks: str) -> str:
    """A kind of blocks in the tables: a mask file without its folder.

    Example:
        >>> label('paper'), label('masks/dtd.npz@0.4')
        ('paper', 'dtd@0.4')
    """
    return blocks if blocks in KINDS else Path(blocks).name.replace('.npz', '', 1)


def drawn_plan(
    model: nn.Module, sizes: Sizes, *, seed: int = 0, scale: float = 1.0, share: float = 1.0
) -> Plan:
    """A plan with blocks of random rows and columns.

    Args:
        model: The plain model.
        sizes: Bounds of the sizes on a ViT-B.
        seed: Seed of the draws.
        scale: Further factor of rows and columns.
        share: Share of the matrices that are adapted, spread over the depth.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = [t for t in find_targets(model).values() if len(t.shape) == 2]
    factor = scale * _width(matrices) / VIT_B_WIDTH
    chosen = [t for i, t in enumerate(matrices) if int((i + 1) * share) > int(i * share)]
    blocks = []
    for target in chosen:
        rows = _draw(*sizes.rows, 1.0, factor, target.shape[0], generator)
        cols = _draw(*sizes.cols, sizes.bend, factor, target.shape[1], generator)
        rank = min(sizes.rank, rows, cols)
        blocks.append(
            Block(
                name=target.name,
                shape=(target.shape[0], target.shape[1]),
                rows=_some(target.shape[0], rows, generator),
                cols=_some(target.shape[1], cols, generator),
                rank=rank,
                num_sensitive=min(rank * (rows + cols), rows * cols),
            )
        )
    return Plan(method='benchmark', blocks=tuple(blocks))


def _width(matrices: list[Target]) -> int:
    """The embedding width: the query's input."""
    return next(target.shape[1] for target in matrices if target.role == 'q')


def _draw(
    least: int, most: int, bend: float, factor: float, limit: int, generator: torch.Generator
) -> int:
    position: float = torch.rand((), generator=generator).item() ** bend
    return max(1, min(limit, round(factor * (least + position * (most - least)))))


def _some(size: int, count: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=generator)[:count].tolist())


def masked_plan(model: nn.Module, masks: Mapping[str, Tensor], source: str = 'the masks') -> Plan:
    """The plan of real masks, with the ranks of the count rule, at least 1.

    Args:
        model: The plain model; matrices without a mask stay frozen.
        masks: Bool ``[O, I]`` by weight name. Separate ``attn.q.weight`` fit a fused ``qkv``.
        source: Where the masks come from, for the error.

    Raises:
        ConfigError: If a mask has no matrix of its shape in the model.
    """
    targets = find_targets(model)
    fitting = {}
    for name, mask in masks.items():
        target = targets.get(_fused_name(name)) or targets.get(name)
        if target is None or target.shape != tuple(mask.shape):
            found = 'none' if target is None else f'one of {target.shape}'
            raise ConfigError(
                f'{source} has a mask of shape {tuple(mask.shape)} for {name}, the model has '
                f'{found}: these masks are of another architecture (released ones need '
                '--model ViT-B)'
            )
        fitting[target.name] = mask
    return plan_from_masks(fitting, rank_rule='count', min_rank=1)


def _fused_name(name: str) -> str:
    """``blocks.0.attn.q.weight`` as ``blocks.0.attn.qkv.weight:q``."""
    owner, _, rest = name.rpartition('attn.')
    part = rest.removesuffix('.weight')
    return f'{owner}attn.qkv.weight:{part}' if owner and part in ('q', 'k', 'v') else name


def adapt(model: nn.Module, plan: Plan, *, seed: int = 0) -> nn.Module:
    """Applies a plan, keeps the head trainable, and gives the adapters an effect.

    Fresh adapters add zero, and some of their gradients are zero; small random ``up`` factors
    stand for an adapter in training.
    """
    apply_plan(model, plan, keep_trainable=['head'], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(model).values():
        up = adapter.get_parameter('up')
        up.data.copy_(torch.randn(up.shape, generator=generator) * 1e-2)
    return model
