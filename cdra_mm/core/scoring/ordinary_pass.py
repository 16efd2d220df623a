"""Ordinary backward passes whose gradients, or their squares, are added up as they arrive.

Autograd adds gradients to a parameter's ``.grad`` by itself. Where the sums are of the parameter's
type and on its device they take that place, and nothing else runs; elsewhere, and for squares, a
hook takes each gradient and lets it go, so that one is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from cdra_mm.errors import ScoreError

from ..model.graph import nodes_of
from .score_sums import ScoreSums
from .squares import add_squared

__all__ = ['OrdinaryPass']


class OrdinaryPass:
    """Adds ``dL/dW`` of whole batches, or its square, to the sums of each parameter.

    A context: in it the parameters' ``.grad`` is its own; afterwards it is what it was.

    Args:
        parameters: By the names of the sums; each requires grad.
        sums: Where they are added up.
        squared: Whether the squares are.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], sums: ScoreSums, *, squared: bool = False
    ) -> None:
        self.parameters, self.sums, self.squared = parameters, sums, squared
        self._looked = False
        self._finite: list[Tensor] = []

    def __enter__(self) -> OrdinaryPass:
        self._before = {name: parameter.grad for name, parameter in self.parameters.items()}
        self._direct = {
            name: self.sums[name]
            for name, parameter in self.parameters.items()
            if self.sums.in_place and not self.squared and type(parameter) is nn.Parameter
            and parameter.dtype == self.sums[name].dtype
        }  # fmt: skip
        self._handles = []
        for name, parameter in self.parameters.items():
            parameter.grad = self._direct.get(name)
            if name not in self._direct:
                register = cast(Any, parameter).register_post_accumulate_grad_hook
                self._handles.append(register(self._adder(name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        for name, parameter in self.parameters.items():
            parameter.grad = self._before[name]

    def run(self, losses: Tensor) -> bool:
        """One backward.

        Args:
            losses: To be added up; their graph is freed. Without a graph nothing is done.

        Returns:
            Whether all gradients were finite.

        Raises:
            ScoreError: If a reentrant checkpoint lies in the graph of the first losses.
        """
        if not (losses.requires_grad and self.parameters):
            return True
        if not self._looked:
            _require_one_graph(losses)
            self._looked = True
        torch.autograd.backward(losses.sum(), inputs=list(self.parameters.values()))
        for name, total in self._direct.items():
            parameter = self.parameters[name]
            if parameter.grad is not total:  # a kind of gradient that is not added in place
                total.copy_(cast(Tensor, parameter.grad))
                parameter.grad = total
        found, self._finite = self._finite, []
        return self.sums.are_finite() if self.sums.in_place else all(map(bool, found))

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if not self.sums.in_place and gradient.numel():
                # Its extremes are NaN if any entry is: a tenth of isfinite's time.
                self._finite.append(torch.stack(gradient.aminmax()).isfinite().all())
            with self.sums.open(name) as total:
                if self.squared:
                    add_squared(total, gradient.to(total.dtype)[None])
                else:
                    total += gradient

        return add


def _require_one_graph(losses: Tensor) -> None:
    """Refuses a reentrant checkpoint, whose weights are in a graph that is not there yet.

    A backward pass to named inputs does not enter it, and their gradients would be zero.
    """
    if any(getattr(node, '_forward_cls', None) is CheckpointFunction for node in nodes_of(losses)):
        raise ScoreError(
            'reentrant activation checkpointing hides its weights from the gradients: switch it '
            'off while scoring, or give use_reentrant=False'
        )
