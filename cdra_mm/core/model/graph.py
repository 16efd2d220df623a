"""The graph that a result's backward pass would take, and which parameters it leads to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ['leaves_of', 'nodes_of']


def nodes_of(result: Tensor) -> Iterator[Any]:
    """Every node of the graph of a result, once each."""
    seen: set[Any] = set()  # kept alive by it: Python makes a node's object when it is asked for
    left: list[Any] = [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [following for following, _ in node.next_functions]


def leaves_of(result: Tensor) -> set[int] | None:
    """The ``id`` of every leaf that a result was made from and that requires a gradient.

    Args:
        result: A tensor with a graph.

    Returns:
        The leaves, without a backward pass; or None where the graph does not show all: a function
        written in Python (activation checkpointing is one) may use parameters inside itself.
    """
    found: set[int] = set()
    for node in nodes_of(result):
        if isinstance(node, BackwardCFunction):
            return None
        leaf = getattr(node, 'variable', None)  # of a node that would add up a gradient
        if leaf is not None:
            found.add(id(leaf))
    return found
