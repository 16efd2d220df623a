"""Which parameters a result depends on, read off the graph that its backward pass would take."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ['leaves_of']


def leaves_of(result: Tensor) -> set[int] | None:
    """The ``id`` of every leaf that a result was made from and that requires a gradient.

    Args:
        result: A tensor with a graph.

    Returns:
        The leaves, without a backward pass; or None where the graph does not show all: a function
        written in Python (activation checkpointing is one) may use parameters inside itself.
    """
    found: set[int] = set()
    seen: set[Any] = set()  # kept alive by it: Python makes a node's object when it is asked for
    left: list[Any] = [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            return None
        seen.add(node)
        leaf = getattr(node, 'variable', None)  # of a node that would add up a gradient
        if leaf is not None:
            found.add(id(leaf))
        left += [following for following, _ in node.next_functions]
    return found
