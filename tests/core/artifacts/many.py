"""A tiny backbone with several tasks whose adapters and heads have moved as training moves them."""

from __future__ import annotations

import torch
from torch import nn

from cdra_mm.core import Block, MultiTask, Part, Plan, SparseMatrix, Vector
from tests.core.problems import move, random_plan
from tests.models import MODELS, TinyViT


def backbone(kind='fused', dtype=torch.float64, **options):
    """A backbone that gives its class token or mean, always with the same weights."""
    torch.manual_seed(0)
    model = TinyViT(**options) if options else MODELS[kind]()
    model.head = nn.Identity()
    return model.to(dtype).eval()


def lora_plan(model):
    """LoRA on two whole matrices, of different ranks and scales."""
    width = model.norm.weight.numel()
    wide, high = tuple(range(width)), tuple(range(2 * width))
    return Plan(
        method='lora',
        blocks=(
            Block('blocks.0.mlp.fc1.weight', (2 * width, width), high, wide, 2, 0, scale=0.5),
            Block('blocks.1.attn.proj.weight', (width, width), wide, wide, 1, 0, scale=2.0),
        ),
    )


def other_kinds(model):
    """Single entries of a matrix, a rescaled matrix, a bias, a token and a matrix trained whole."""
    width = model.norm.weight.numel()
    return Plan(
        method='mixed',
        parts=(Part('blocks.0.attn.proj.weight', 'rescaling', {}, 2 * width),),
        sparse=(SparseMatrix('blocks.1.mlp.fc1.weight', (2 * width, width), (1, 7, 30)),),
        vectors=(Vector('blocks.1.norm2.bias', width, None, width),),
        also_train={'cls_token': width, 'blocks.1.mlp.fc2.weight': 2 * width * width},
    )


class Dense(nn.Module):
    """A head that gives a map for each sample, and a second output."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.score = nn.Linear(width, 4 * classes)

    def forward(self, x):
        found = self.score(self.norm(x))
        return {'map': found.unflatten(1, (-1, 2, 2)), 'sum': found.sum(1)}


def many(kind='fused', dtype=torch.float64, plans=None, **options):
    """A `MultiTask` with a task of each plan: linear heads, and one dense one."""
    model = backbone(kind, dtype, **options)
    if plans is None:
        plans = [random_plan(model, 0), random_plan(model, 5, 1), random_plan(model, 3, 'eq7')]
    several = MultiTask(model)
    width = model.norm.weight.numel()
    for index, plan in enumerate(plans):
        torch.manual_seed(index)
        head = Dense(width, 3) if index == 1 else nn.Linear(width, 3 + index)
        several.add(f't{index}', plan, head.to(dtype), seed=index)
        several.use(f't{index}')
        move(several, index)
    several.use(None)
    return several.eval()
