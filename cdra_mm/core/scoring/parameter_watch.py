"""Sees each use of a competing parameter and puts a scored operation in its place.

A ``TorchFunctionMode`` watches the functions that torch is called with, so it does
not matter which module holds a weight or whether its ``forward`` is called. Each kind of use has
a handler in `watched_uses`; a parameter that is used without one, or twice, is left alone and
scored by `one_by_one`: slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cdra_mm.errors import ScoreError

from .square_sink import Shift, SquareSink

__all__ = ['Handler', 'NotInOnePass', 'ParameterWatch']

Handler = Callable[..., Any]
"""Called with the watch and the arguments of a function that it stands for."""


class NotInOnePass(ScoreError):
    """A use of a parameter that no scored operation covers."""


class ParameterWatch(TorchFunctionMode):
    """Replaces each use of a competing parameter by its scored operation.

    Args:
        names: Key of ``sink.sums`` by ``id`` of the parameter.
        sink: Where the squares go.
        handlers: The uses that are known, by the function that makes them.

    Attributes:
        alone: Names of parameters that are left to `one_by_one`, with the reason.
        complete: Whether all of them were known when this forward began.
        used: Names of those that scored operations have used in this forward.
    """

    def __init__(
        self, names: dict[int, str], sink: SquareSink, handlers: Mapping[Any, Handler]
    ) -> None:
        super().__init__()
        self.names, self.sink, self.handlers = names, sink, handlers
        self.alone: dict[str, str] = {}
        self.complete = True
        self.anchor = torch.zeros((), requires_grad=True, device='cpu')
        self.used: set[str] = set()
        self.views: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self.joins: dict[int, tuple[tuple[Shift, ...], Tensor]] = {}

    def begin(self) -> None:
        """Starts a new forward."""
        self.complete = True
        self.used.clear()
        self.views.clear()
        self.joins.clear()
        self.anchor = torch.zeros((), requires_grad=True, device=self.sink.sums.device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [n for value in _flat((*args, *kwargs.values())) for n in self.names_of(value)]
        if not names:
            return func(*args, **kwargs)
        handler = self.handlers.get(func)
        known = next((name for name in names if name in self.alone), '')
        if handler is not None and not known:
            try:
                out = handler(self, *args, **kwargs)
                if out is not NotImplemented:
                    return out
            except NotInOnePass as error:
                self.leave(names, str(error))
        out = func(*args, **kwargs)
        # Several results, as of chunk, are as much a use as one.
        used = any(isinstance(part, Tensor) and part.requires_grad for part in _flat((out,)))
        if used and not isinstance(out, nn.Parameter):
            # An ordinary operation gives all its parameters ordinary gradients.
            by = getattr(func, '__name__', func)
            self.leave(names, f'used with {known}' if known else f'used by {by}')
        return out

    def leave(self, names: Iterable[str], reason: str) -> None:
        """Leaves parameters to `one_by_one`, from the next forward on."""
        for name in names:
            if name not in self.alone:
                self.alone[name] = reason
                self.complete = False

    def names_of(self, value: Any) -> tuple[str, ...]:
        """The names of the competing parameters that a value is, or is joined from."""
        if not isinstance(value, Tensor):
            return ()
        if id(value) in self.joins:
            return tuple(shift.name for shift in self.joins[id(value)][0])
        name = self.name(value)
        return (name,) if name else ()

    def name(self, value: Any) -> str:
        """The name of a competing parameter, '' for anything else."""
        return self.names.get(id(self.origin(value)), '')

    def origin(self, value: Any) -> Any:
        """The parameter that a noted view shows, or the value itself."""
        return self.views[id(value)][0] if id(value) in self.views else value

    def note_view(self, parameter: nn.Parameter, view: Tensor) -> Tensor:
        """Remembers a reshaped vector (a layer scale does that before it multiplies)."""
        self.views[id(view)] = (parameter, view)  # held, so that its id stays its own
        return view

    def note_join(self, shifts: tuple[Shift, ...], joined: Tensor) -> Tensor:
        """Remembers a bias that was put together from several vectors."""
        self.joins[id(joined)] = (shifts, joined)
        return joined

    def use(self, *values: Any) -> list[str]:
        """The names of the values, each noted as used once in this forward."""
        if any(id(value) in self.joins for value in values):
            raise NotInOnePass('used otherwise than in a bias')
        found = [self.name(value) for value in values]
        for name, value in zip(found, values, strict=True):
            if not name:
                self._refuse_computed(value)
        for name in filter(None, found):
            self._mark(name)
        return found

    def use_bias(self, bias: Any) -> tuple[Shift, ...]:
        """The competing vectors that a bias consists of, each noted as used once."""
        if id(bias) in self.joins:
            shifts = self.joins[id(bias)][0]
            for shift in shifts:
                self._mark(shift.name)
            return shifts
        return tuple(Shift(name) for name in self.use(bias) if name)

    def _refuse_computed(self, value: Any) -> None:
        """A scored operation gives what stands in a weight's place no gradient to pass on."""
        if isinstance(value, Tensor) and value.grad_fn is not None:
            raise NotInOnePass('used together with a weight or bias that is computed')

    def _mark(self, name: str) -> None:
        if name in self.used:
            # The squares of its uses do not add up to the square of its gradient.
            raise NotInOnePass('used twice in one forward')
        self.used.add(name)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
