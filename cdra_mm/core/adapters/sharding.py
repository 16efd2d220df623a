"""A frozen base over several processes: torch's own FSDP2, with the adapters whole on each.

Scores, plans and adapters need whole weights, a training step does not. So the order is

    scores = estimate_scores(model, ...)        # each process a share, `combine` adds them up
    plan = make_plan(scores, ...)               # the same on all
    apply_plan(model, plan, keep_trainable=['head'])
    shard_base(model)                           # from here on a weight is whole while it is used
    optimizer = AdamW(p for p in model.parameters() if p.requires_grad)

    loss.backward()
    average_gradients(model)                    # of what is trained; the base has none
    optimizer.step()

    save_adapter(model, path)                   # on one process; all hold the same

What is trained (adapters, a head) is half a percent of the model: it is replicated, and FSDP2 is
told to leave it alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from cdra_mm.errors import ConfigError, PlanError

from ..model.digests import digests_of
from ..model.own_state import base_state
from ..model.sharded import is_sharded
from ..model.transformer_layers import find_layers
from .adapted import adapters, plan_of, remember_digests
from .small_base import refuse_int8

__all__ = ['average_gradients', 'refuse_sharded', 'shard_base']


def shard_base(model: nn.Module, **options: Any) -> nn.Module:
    """Spreads what a plan leaves frozen over the processes of a group, in place.

    Every transformer block becomes a unit of ``torch.distributed.fsdp.fully_shard``, what lies
    outside of them one more. What is trained stays whole, with the values of process 0.

    Args:
        model: An adapted model, the same on every process, on the device that it will run on.
        **options: Of ``fully_shard``: ``mesh``, ``reshard_after_forward``, ``mp_policy``,
            ``offload_policy``.

    Returns:
        The model.

    Raises:
        ConfigError: If torch cannot, or no group of processes was joined.
        PlanError: If the model has no adapters yet, merged ones, is sharded already, or in int8.
    """
    fully_shard = _fully_shard()
    refuse_sharded(model, 'it cannot be sharded again')
    refuse_int8(
        model, 'FSDP shards plain weights', 'one of the two saves the memory: leave int8 out'
    )
    if plan_of(model) is None:
        raise PlanError(
            f'{type(model).__name__} has no adapters: apply a plan before its base is sharded, a '
            'part of a weight can be neither scored nor adapted'
        )
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise PlanError(
            f'{len(merged)} adapters are merged (the first is {merged[0]}): unmerge them before '
            'the base is sharded'
        )
    # Later no process sees a whole weight to tell which base it was.
    remember_digests(model, digests_of(base_state(model)))
    trained = _trained(model)
    for parameter in trained:
        torch.distributed.broadcast(parameter.detach(), 0)
    layers = [model.get_submodule(path) for path in find_layers(model)]
    # FSDP2 gathers a unit when it is called, which a list never is: there the parts are units.
    units = [
        unit
        for layer in layers
        for unit in (layer.children() if isinstance(layer, nn.ModuleList) else [layer])
    ]
    for unit in (*units, model):
        fully_shard(unit, ignored_params=set(trained), **options)
    return model


def average_gradients(model: nn.Module) -> None:
    """The mean of the processes' gradients of what is trained whole, in place; one collective.

    Where a process has no gradient it counts as zero; where none has, there is none.

    Args:
        model: What `shard_base` gave, after a backward.

    Raises:
        ConfigError: If no group of processes was joined.
    """
    _require_group()
    trained = _trained(model)
    by_dtype: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in trained:
        by_dtype.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for parameters in by_dtype.values():
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        given = gradients[0].new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([given, *(gradient.reshape(-1) for gradient in gradients)])
        torch.distributed.all_reduce(flat)
        given, flat = flat[: len(given)], flat[len(given) :] / torch.distributed.get_world_size()
        parts = torch.split(flat, [p.numel() for p in parameters])
        for parameter, part, count in zip(parameters, parts, given.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if count else None


def refuse_sharded(model: nn.Module, consequence: str) -> None:
    """Raises PlanError where a model holds parts of weights.

    Args:
        model: The model.
        consequence: What that rules out.
    """
    found = next((name for name, p in model.named_parameters() if is_sharded(p)), '')
    if found:
        raise PlanError(
            f'{found} is spread over processes (FSDP): {consequence}; save the adapter with '
            'save_adapter, and load it into a model with whole weights'
        )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """What is trained, whole on every process."""
    return [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]


def _require_group() -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ConfigError(
            'no group of processes: call torch.distributed.init_process_group first, in a process '
            'that torchrun started'
        )


def _fully_shard() -> Any:
    _require_group()
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ConfigError(
            f'torch {torch.__version__} has no fully_shard: use 2.7 or newer'
        ) from None
    if 'ignored_params' not in inspect.signature(fully_shard).parameters:
        raise ConfigError(
            f'fully_shard of torch {torch.__version__} cannot leave the adapters whole '
            '(ignored_params): use torch 2.7 or newer'
        )
    return fully_shard
