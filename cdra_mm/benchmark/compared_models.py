"""The models whose training steps are compared, each with what it trains.

Every builder takes a fresh plain model, all frozen but its head, and returns it
changed. The blocks' four matrices (qkv, proj, fc1, fc2) are what LoRA adapts, and what
ours has its blocks in.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.core import Plan, find_targets
from cdra_mm.core.adapters.copied_weights import choose_product
from cdra_mm.core.adapters.native_linear import NATIVE
from cdra_mm.sizing.block_sizes import adapt

__all__ = [
    'FULL',
    'LORA',
    'REFERENCE',
    'Builder',
    'frozen_limit',
    'full',
    'installed',
    'linear_paths',
    'lora_rank_of_size',
    'mmpretrain_lora',
    'ours',
    'peft_builders',
    'peft_lora',
]

LORA_RANK = 8
# Their names beside ours.
REFERENCE, LORA, FULL = 'frozen limit', f'peft LoRA r={LORA_RANK}', 'full'
Builder = Callable[[nn.Module], nn.Module]


def installed(module: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(module) is not None


def linear_paths(model: nn.Module) -> list[str]:
    """Paths of the linear layers of the blocks."""
    targets = find_targets(model).values()
    return list(dict.fromkeys(t.module for t in targets if len(t.shape) == 2))


def _head_only(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    model.get_submodule('head').requires_grad_(True)
    return model


def frozen_limit(model: nn.Module) -> nn.Module:
    """A frozen base whose backward reaches the first block: the limit of any adapter.

    A zero that requires a gradient is added to the input of the first block, as something that is
    trained there would; only the head is trained. Compiles into one graph.
    """
    _head_only(model)
    first = cast(nn.ModuleList, model.get_submodule('blocks'))[0]
    device = next(model.parameters()).device
    zero = torch.zeros((), device=device, requires_grad=True)  # no dimension: it changes no type
    zero.register_post_accumulate_grad_hook(_drop_gradient)  # as an optimizer's user does

    def require_grad(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + zero, *inputs[1:]) if torch.is_grad_enabled() else inputs

    first.register_forward_pre_hook(require_grad)
    return model


def _drop_gradient(tensor: Tensor) -> None:
    tensor.grad = None


def full(model: nn.Module) -> nn.Module:
    """Full fine-tuning."""
    return model.requires_grad_(True)


def ours(model: nn.Module, plan: Plan, seed: int = 0, product: str = 'auto') -> nn.Module:
    """Compact adapters of a plan; `product` as in `choose_product`."""
    NATIVE.build_now()
    model = adapt(model, plan, seed=seed)
    choose_product(model, product)
    return model


def peft_builders(peers: Iterable[str], skipped: dict[str, str]) -> dict[str, Builder]:
    """peft's LoRA by its name, where it is asked for; `skipped` tells where it is not installed."""
    if 'peft' not in peers:
        return {}
    if not installed('peft'):
        skipped['peft LoRA'] = 'peft is not installed: pip install peft'
        return {}
    return {LORA: peft_lora}


def peft_lora(model: nn.Module, rank: int = LORA_RANK) -> nn.Module:
    """peft's LoRA without dropout on all matrices of the blocks, ``B`` not zero."""
    peft = importlib.import_module('peft')
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=linear_paths(model),
        init_lora_weights=False,
    )
    model = peft.inject_adapter_in_model(config, model)
    model.get_submodule('head').requires_grad_(True)
    return model


def mmpretrain_lora(model: nn.Module, rank: int = LORA_RANK) -> nn.Module:
    """The layers that mmpretrain's LoRAModel puts in, on all matrices of the blocks."""
    linear: Any = _mmpretrain_linear()
    paths = linear_paths(model)
    _head_only(model)
    for path in paths:
        parent, _, name = path.rpartition('.')
        layer = linear(model.get_submodule(path), alpha=rank, rank=rank)
        nn.init.normal_(layer.lora_up.weight, std=1e-2)
        setattr(model.get_submodule(parent), name, layer)
    return model


def _mmpretrain_linear() -> Any:
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    return importlib.import_module('mmpretrain.models.peft.lora').LoRALinear


def mmpretrain_problem() -> str:
    """Why mmpretrain cannot be compared with, '' if it can."""
    if not installed('mmpretrain'):
        return 'mmpretrain is not installed'
    try:
        _mmpretrain_linear()
    except Exception as error:  # a broken or mixed installation fails in its own ways
        return f'mmpretrain cannot be imported: {error}'.partition('\n')[0]
    return ''


def lora_rank_of_size(model: nn.Module, plan: Plan) -> int:
    """The rank, at least 1, whose LoRA trains about as many parameters as the plan."""
    layers = [cast(nn.Linear, model.get_submodule(path)) for path in linear_paths(model)]
    per_rank = sum(layer.in_features + layer.out_features for layer in layers)
    return max(1, round(plan.num_trainable / per_rank))


def trainable(model: nn.Module) -> int:
    """Trainable parameters outside the head."""
    head = {id(p) for p in model.get_submodule('head').parameters()}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in head)
