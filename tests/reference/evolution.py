"""Every subnet of a search space, one after the other: the slow, obvious search."""

from __future__ import annotations

from itertools import product


def all_subnets(space) -> list[tuple[tuple[int, ...], ...]]:
    """All of them; `space` holds an object with ``dims`` and ``depths`` for each kind."""
    kinds = [
        [dims for depth in kind.depths for dims in product(kind.dims, repeat=depth)]
        for kind in space
    ]
    return list(product(*kinds))


def best_subnet(space, fitness, num_params, limit):
    """The fittest within the limit, of equally fit ones that with the fewest parameters."""
    within = [subnet for subnet in all_subnets(space) if num_params(subnet) <= limit]
    return max(within, key=lambda subnet: (fitness(subnet), -num_params(subnet)))
