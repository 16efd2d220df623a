"""What a task may be: its name, and a head of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from cdra_mm.errors import PlanError

from ..model.child_names import not_a_child_name

__all__ = ['check_own_head', 'check_task_name', 'refuse_training', 'tell_what_is_left_out']


def check_task_name(name: Any) -> None:
    """Refuses a name under which torch keeps no module.

    Raises:
        PlanError: If it is one.
    """
    fault = not_a_child_name(name)
    if fault:
        raise PlanError(f'the name {name!r} of a task {fault}')


def check_own_head(
    name: str, head: Any, backbone: nn.Module, others: Mapping[str, nn.Module]
) -> None:
    """Refuses a head that is none, or whose training would change the base or another task.

    Args:
        name: The task.
        head: Its head.
        backbone: The base of all tasks.
        others: The heads of the other tasks.

    Raises:
        PlanError: Names what is shared.
    """
    if not isinstance(head, nn.Module):
        raise PlanError(
            f'the head of {name!r} is a {type(head).__name__}: expected a torch.nn.Module'
        )
    own = {id(parameter): key for key, parameter in head.named_parameters()}
    for key, parameter in backbone.named_parameters():
        if id(parameter) in own:
            raise PlanError(
                f'the head of {name!r} shares {own[id(parameter)] or "a weight"} with {key} of the '
                'base, which no task may change: give it a copy'
            )
    for other, module in others.items():
        shared = [own[id(p)] for p in module.parameters() if id(p) in own]
        if head is module or shared:
            what = f' ({shared[0]})' if shared else ''
            raise PlanError(
                f'the head of {name!r} is that of another task, {other!r}, or shares weights with '
                f'it{what}: give each its own'
            )


def refuse_training(parts: Mapping[str, nn.Module]) -> None:
    """Refuses a batch of several tasks while anything that it runs through is in training mode.

    Raises:
        PlanError: Names the first.
    """
    for path, part in parts.items():
        for inside, module in part.named_modules():
            if module.training:
                name = f'{path}.{inside}'.strip('.') or type(part).__name__
                raise PlanError(
                    f'{name} is in training mode, and a batch of several tasks has no gradients: '
                    'call eval() first, and train one task at a time with use()'
                )


def tell_what_is_left_out(model: Any, *_: Any) -> None:
    """Warns that a state dict of many tasks has one of them: a hook after it was made.

    The modules of such a model are those of its base and of the task in use.
    """
    others = [name for name in model.names if name != model.current]
    if others:
        warnings.warn(
            f'the state dict of a {type(model).__name__} has the adapters of the task in use alone '
            f'({model.current!r}); those of {", ".join(map(repr, others))} are not in it: write '
            'each task with save()',
            stacklevel=3,
        )
