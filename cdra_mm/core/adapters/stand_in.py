"""What stands in the place of a parameter while a model's forward runs: a weight plus something.

Code that calls ``F.linear(x, weight, bias)`` with it, whether a layer or attention written out,
gets the stand-in's own product. So no weight with the update in it has to be made, and no forward
of a model is known or replaced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..model.attention import attention_forward
from .fitting import Place

__all__ = ['StandIn', 'standing_in']

# What may be asked of a weight without using its values.
_KNOWN = {'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_meta', 'requires_grad'}
_KNOWN |= {'size', 'dim', 'numel', 'is_floating_point', 'element_size'}


class StandIn(ABC):
    """A weight plus something.

    Args:
        name: Name of the weight in the model.
        base: The weight, ``[O, I]``.
    """

    def __init__(self, name: str, base: Tensor) -> None:
        self.name, self.base = name, base

    @abstractmethod
    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``F.linear`` with it: ``[..., I]`` to ``[..., O]``."""

    @abstractmethod
    def whole(self) -> Tensor:
        """The weight itself, for any other use.

        Raises:
            PlanError: If there is no such tensor.
        """

    def __getattr__(self, name: str) -> Any:
        """Shape and type of the base; of anything else the whole weight's."""
        if name.startswith('__') or name in ('base', 'name'):
            raise AttributeError(name)
        return getattr(self.base if name in _KNOWN else self.whole(), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What torch calls in the place of a function that is given one."""
        kwargs = kwargs or {}
        if func is F.linear:
            given = dict(zip(('input', 'weight', 'bias'), args, strict=False)) | kwargs
            if isinstance(given['weight'], StandIn):
                return given['weight'].product(given['input'], given.get('bias'))
        args, kwargs = tree_map(_whole, (args, kwargs))
        return func(*args, **kwargs)


def _whole(value: Any) -> Any:
    return value.whole() if isinstance(value, StandIn) else value


@contextmanager
def standing_in(
    model: nn.Module, places: Mapping[str, Place], values: Mapping[str, Any]
) -> Iterator[None]:
    """Puts stand-ins and tensors in the place of a model's own, and its own back.

    Args:
        model: The plain model.
        places: Where its tensors are, by name.
        values: What takes the place of which.
    """
    before = [(places[name], places[name][0][places[name][1]]) for name in values]
    replaced = {id(held) for (held, _), _ in before}
    attentions = [
        module
        for module in model.modules()
        if type(module) is nn.MultiheadAttention  # a subclass may compute anything
        and replaced & {id(module._parameters), id(module.out_proj._parameters)}
    ]
    try:
        for name, value in values.items():
            held, key = places[name]
            held[key] = value
        for module in attentions:
            module.__dict__['forward'] = partial(_attention, module)
        yield
    finally:
        for (held, key), value in before:
            held[key] = value
        for module in attentions:
            module.__dict__.pop('forward', None)


def _project(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return F.linear(x, module.in_proj_weight, module.in_proj_bias)


_attention = attention_forward(_project, without_gradients=True)
