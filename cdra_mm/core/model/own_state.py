"""A model's own tensors: its parameters and persistent buffers, adapted or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ['PLAN_KEY', 'base_buffers', 'base_state', 'tensors_in']

# In the state dict of an adapted model, the plan that its adapters are built by.
PLAN_KEY = 'cdra_plan'


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's own parameters and persistent buffers by name, without adapters and plan.

    The tensors share the memory of the model's.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    adapters = tuple(
        f'{path}.cdra.'.lstrip('.')
        for path, module in modules
        if hasattr(type(module), 'base_class')
    )
    plans = {f'{path}.{PLAN_KEY}'.lstrip('.') for path, _ in modules}
    return {
        key: value
        for key, value in model.state_dict().items()
        if isinstance(value, Tensor) and key not in plans and not key.startswith(adapters)
    }


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of what a model takes or gives, however it is nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(entry)


def base_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of `base_state`: tables, and statistics that change in training."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {key: value for key, value in base_state(model).items() if key not in parameters}
