"""Adapted models to test on: random masks over a model's targets, and factors away from zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import Plan, apply_plan, find_targets, fingerprint, plan_from_masks
from tests.models import MODELS, images

SKIPPED = ('blocks.0.attn.qkv.weight:k', 'blocks.1.attn.proj.weight', 'blocks.0.norm2.bias')
"""Targets that stay frozen, so that neighbours of adapted ones are seen to stay as they are."""


def random_masks(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Masks with rows and columns to spare; every other vector has too few entries to be whole."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for index, (name, target) in enumerate(find_targets(model).items()):
        if name in SKIPPED:
            continue
        mask = torch.rand(target.shape, generator=generator) < 0.6
        if mask.dim() == 2:
            mask &= torch.rand(target.shape[0], 1, generator=generator) < 0.6
            mask &= torch.rand(1, target.shape[1], generator=generator) < 0.6
        elif index % 2:
            mask = torch.zeros(target.shape, dtype=torch.bool)
            mask[index % len(mask)] = True
        if mask.any():
            chosen[name] = mask
    return chosen


def random_plan(model: nn.Module, seed: int = 0, rank_rule: int | str = 2) -> Plan:
    """A plan over random masks, for exactly these base weights."""
    also_train = {'cls_token': 8} if hasattr(model, 'cls_token') else None
    return plan_from_masks(
        random_masks(model, seed),
        rank_rule=rank_rule,
        beta=4,
        also_train=also_train,
        fingerprint=fingerprint(model),
    )


def move(model: nn.Module, seed: int = 1) -> None:
    """Shifts every trainable parameter away from where it started, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype) * 0.3)


def adapted(kind: str, *, moved: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0):
    """A base model, its twin with a random plan's adapters, and that plan, all in eval mode."""
    torch.manual_seed(seed)
    base = MODELS[kind]().to(dtype).eval()
    torch.manual_seed(seed)
    model = MODELS[kind]().to(dtype).eval()
    plan = random_plan(model, seed)
    apply_plan(model, plan)
    if moved:
        move(model)
    return base, model, plan


def outputs(model: nn.Module, dtype: torch.dtype = torch.float64, count: int = 3) -> Tensor:
    """What the model says to the same random images."""
    with torch.no_grad():
        return model(images(count, dtype)[0])


def adapter_keys(plan: Plan) -> set[str]:
    """State dict keys that a plan's adapters add."""
    keys = set()
    for block in plan.blocks:
        module, _, suffix = block.name.rpartition('.')
        keys |= {f'{module}.cdra.{suffix}.{key}' for key in ('down', 'up')}
    for vector in plan.vectors:
        if vector.indices is not None:
            module, _, suffix = vector.name.rpartition('.')
            keys.add(f'{module}.cdra.{suffix}.value')
    return keys


def trainable_names(plan: Plan) -> set[str]:
    """Parameters that a plan trains."""
    whole = {vector.name for vector in plan.vectors if vector.indices is None}
    factors = {key for key in adapter_keys(plan) if key.endswith(('.down', '.up', '.value'))}
    return factors | whole | set(plan.also_train)


def by_blocks(model: nn.Module, reentrant: bool) -> nn.Module:
    """The forward of a model whose blocks are computed again in the backward."""
    for block in model.blocks:
        plain = block.forward

        def again(x, plain=plain):
            x = x if x.requires_grad else x.detach().requires_grad_()
            return checkpoint(plain, x, use_reentrant=reentrant)

        block.forward = again
    return model
