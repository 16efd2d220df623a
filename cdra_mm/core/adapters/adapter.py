"""What an adapter is: a trained change of one module, in one of two places.

`ParameterAdapter`  changes a parameter:   ``W' = f(W)``           low rank, single entries
`CallAdapter`       changes what the module computes:  ``y' = f(forward, x)``   bottlenecks, prompts

Both are children of the adapted module's ``cdra``, under the parameter's or the kind's
name. The plan says how each is built (`core.planning.plan.Part`); a state dict holds what it has
learnt, its parameters. A new kind is one class with `register_kind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from cdra_mm.errors import PlanError

__all__ = [
    'Adapter',
    'CallAdapter',
    'ParameterAdapter',
    'find_kind',
    'register_kind',
]


class Adapter(nn.Module, ABC):
    """A trained change of a module.

    Attributes:
        kind: Its name in plans.
        can_merge: Whether plain weights can hold the change.
        merged: Whether they do; then nothing is added and nothing of the adapter
            goes into a state dict.
    """

    is_adapter = True
    kind: ClassVar[str]
    can_merge: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.merged = False

    @abstractmethod
    def reset(self, generator: torch.Generator) -> None:
        """Sets the initial values."""

    def attach(self, model: nn.Module) -> None:
        """Called when it was put on a module of a model, for what lies outside of that module."""

    def detach(self, model: nn.Module) -> None:
        """Called before it is taken off: undoes `attach`."""

    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """Puts the change into the module's plain weights, or takes it out (``sign=-1``).

        Raises:
            PlanError: If the kind cannot be merged.
        """
        raise PlanError(f'{self.kind} has no plain weight that could hold it: it does not merge')

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if not self.merged:
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        held = any(key.startswith(prefix) for key in state_dict)
        if self.merged and not held:
            return  # a merged state for a merged model
        # The base that comes with an adapter does not hold its change.
        self.merged = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ParameterAdapter(Adapter):
    """A change of one base parameter, or of some rows of it.

    Attributes:
        parameter: Name of the base parameter in the adapted module.
        trains_entries: Whether its one trained tensor is what is added to entries of that
            parameter, so that an optimizer has to treat it as it treats the parameter itself
            (no decay of a bias, say).
    """

    trains_entries: ClassVar[bool] = False

    def __init__(self, parameter: str) -> None:
        super().__init__()
        self.parameter = parameter

    def moved(self, device: torch.device) -> ParameterAdapter:
        """This adapter, moved to a device where it is not there yet."""
        held = (*self._parameters.values(), *self._buffers.values())
        if any(tensor is not None and tensor.device != device for tensor in held):
            self.to(device)
        return self

    @abstractmethod
    def added_to(self, base: Tensor) -> Tensor:
        """The base plus the change, differentiable, a new tensor."""

    @torch.no_grad()
    def merge_(self, module: nn.Module, sign: int = 1) -> None:
        """See `Adapter.merge_`."""
        base = module._parameters[self.parameter]
        assert base is not None
        wide = base.double()
        change = self.added_to(torch.zeros_like(wide))
        base.copy_((wide + sign * change).to(base.dtype))
        self.merged = sign > 0


class CallAdapter(Adapter):
    """A change of what a module computes."""

    @abstractmethod
    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The adapted module's output.

        Args:
            forward: The module's own forward, with the other adapters inside.
            *args: What the module was called with.
            **kwargs: Likewise.
        """


_KINDS: dict[str, type[Adapter]] = {}
_Kind = TypeVar('_Kind', bound=type[Adapter])


def register_kind(kind: _Kind) -> _Kind:
    """Makes a kind known to plans and checkpoints; a decorator.

    Raises:
        ValueError: If its name is that of another kind.
    """
    for other in _KINDS.values():
        if other.kind == kind.kind:
            raise ValueError(f'{kind.__name__}: {other.__name__} has its name')
    _KINDS[kind.kind] = kind
    return kind


def find_kind(name: str) -> type[Adapter]:
    """The kind of a name.

    Raises:
        PlanError: If there is none.
    """
    if name not in _KINDS:
        raise PlanError(
            f'kind {name!r} is unknown: expected one of {", ".join(sorted(_KINDS))} (kinds of the '
            'other methods are known after importing cdra_mm.methods)'
        )
    return _KINDS[name]
