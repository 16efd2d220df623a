"""An evolutionary search over the sizes of modules, under a limit of parameters.

A *subnet* says, for each kind of module, how large the module of each of the first blocks is: its
length is the depth of that kind, and the blocks behind have none. Pure Python; what a subnet is
worth is for the caller to say.

Random candidates, then generations of mutated and crossed ones, as NOAH (Zhang et al., *Neural
Prompt Search*, TPAMI 2024) has it from AutoFormer (Chen et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

__all__ = ['Choice', 'Evolution', 'Found', 'Space', 'Subnet', 'draw', 'largest', 'smallest']

Subnet = tuple[tuple[int, ...], ...]

PATIENCE = 10  # candidates tried for each one wanted, before a generation stays smaller
REJECTED = 20  # random candidates above the limit, before one is made smaller instead


@dataclass(frozen=True)
class Choice:
    """What one kind of module may be.

    Attributes:
        dims: Sizes of a module, ascending.
        depths: Numbers of first blocks that have one, ascending.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]


Space = tuple[Choice, ...]


def draw(space: Space, rng: Random) -> Subnet:
    """A random subnet: each depth, and each size in it, uniformly and by itself."""
    return tuple(_dims(choice, rng.choice(choice.depths), rng) for choice in space)


def smallest(space: Space) -> Subnet:
    """The subnet of the least depths and sizes."""
    return tuple((choice.dims[0],) * choice.depths[0] for choice in space)


def largest(space: Space) -> Subnet:
    """The subnet that holds every other one."""
    return tuple((choice.dims[-1],) * choice.depths[-1] for choice in space)


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        subnet: The best subnet.
        fitness: What it is worth.
        tried: Subnets whose worth was asked for.
    """

    subnet: Subnet
    fitness: float
    tried: int


@dataclass(frozen=True)
class Evolution:
    """The settings of a search.

    Attributes:
        population: Candidates of a generation; random ones fill up what the others leave.
        num_parents: The best of all so far, from which the next ones come.
        num_mutations: Mutated candidates of a generation.
        num_crossovers: Crossed candidates of a generation.
        generations: Generations after the first, random one.
        mutation_prob: Probability that a kind of module is mutated, and then each size of it.
        depth_prob: Probability that a mutation draws the depth anew, and leaves the sizes.
    """

    population: int
    num_parents: int
    num_mutations: int
    num_crossovers: int
    generations: int
    mutation_prob: float
    depth_prob: float

    def search(
        self,
        space: Space,
        fitness: Callable[[Subnet], float],
        num_params: Callable[[Subnet], int],
        limit: int,
        rng: Random,
    ) -> Found:
        """Searches for the fittest subnet within the limit.

        Among equally fit ones the one with fewer parameters is better, then the earlier one: a
        few hundred samples often cannot tell two subnets apart.

        Args:
            space: What may be chosen; its `smallest` subnet is within the limit.
            fitness: Worth of a subnet, higher is better; asked once for each.
            num_params: Parameters of a subnet; they grow with every size and depth.
            limit: The most parameters.
            rng: All that is random here.
        """
        known: dict[Subnet, float] = {}
        parents: list[Subnet] = []

        def try_new(make: Callable[[], Subnet], number: int) -> None:
            """Measures up to so many candidates that are new and within the limit."""
            wanted = len(known) + number
            for _ in range(PATIENCE * number):
                if len(known) >= wanted:
                    return
                candidate = make()
                if candidate not in known and num_params(candidate) <= limit:
                    known[candidate] = fitness(candidate)

        def rank(subnet: Subnet) -> tuple[float, int]:
            return -known[subnet], num_params(subnet)

        def draw_within() -> Subnet:
            for _ in range(REJECTED):
                candidate = draw(space, rng)
                if num_params(candidate) <= limit:
                    return candidate
            while num_params(candidate) > limit:
                candidate = _one_smaller(candidate, space, rng)
            return candidate

        def mutated() -> Subnet:
            return self.mutate(rng.choice(parents), space, rng)

        def crossed() -> Subnet:
            return cross(rng.choice(parents), rng.choice(parents), rng)

        try_new(draw_within, self.population)
        for _ in range(self.generations):
            parents = sorted(known, key=rank)[: self.num_parents]
            before = len(known)
            try_new(mutated, self.num_mutations)
            try_new(crossed, self.num_crossovers)
            try_new(draw_within, max(0, self.population - (len(known) - before)))
        best = min(known, key=rank)
        return Found(best, known[best], len(known))

    def mutate(self, subnet: Subnet, space: Space, rng: Random) -> Subnet:
        """A changed subnet, kind by kind: its depth, or some of its sizes."""
        return tuple(
            self._mutated(dims, choice, rng) if rng.random() < self.mutation_prob else dims
            for dims, choice in zip(subnet, space, strict=True)
        )

    def _mutated(self, dims: tuple[int, ...], choice: Choice, rng: Random) -> tuple[int, ...]:
        if rng.random() < self.depth_prob:
            depth = rng.choice(choice.depths)
            return dims[:depth] + _dims(choice, max(0, depth - len(dims)), rng)
        return tuple(
            rng.choice(choice.dims) if rng.random() < self.mutation_prob else dim for dim in dims
        )


def cross(first: Subnet, second: Subnet, rng: Random) -> Subnet:
    """Each kind of module as one of the two parents has it."""
    return tuple(rng.choice(pair) for pair in zip(first, second, strict=True))


def _dims(choice: Choice, depth: int, rng: Random) -> tuple[int, ...]:
    return tuple(rng.choice(choice.dims) for _ in range(depth))


def _one_smaller(subnet: Subnet, space: Space, rng: Random) -> Subnet:
    """A depth, or one size, a step smaller; which one is random."""
    steps = []
    for kind, (dims, choice) in enumerate(zip(subnet, space, strict=True)):
        depths = [depth for depth in choice.depths if depth < len(dims)]
        if depths:
            steps.append((kind, dims[: depths[-1]]))
        for place, dim in enumerate(dims):
            less = [other for other in choice.dims if other < dim]
            if less:
                steps.append((kind, (*dims[:place], less[-1], *dims[place + 1 :])))
    kind, dims = rng.choice(steps)
    return (*subnet[:kind], dims, *subnet[kind + 1 :])
