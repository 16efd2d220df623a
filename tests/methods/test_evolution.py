"""The evolutionary search against trying everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from cdra_mm.methods.evolution import Choice, Evolution, cross, draw, largest, smallest
from tests.reference.evolution import all_subnets, best_subnet

TINY = (Choice((1, 3), (1, 2)), Choice((2, 5, 9), (1, 2)))
WIDE = (Choice((1, 2, 4, 8), (2, 4, 6)), Choice((1, 2, 4, 8), (2, 4, 6)))
SETTINGS = Evolution(
    population=20,
    num_parents=6,
    num_mutations=8,
    num_crossovers=8,
    generations=8,
    mutation_prob=0.5,
    depth_prob=0.4,
)


def num_params(subnet):
    return sum(10 * sum(dims) + len(dims) for dims in subnet)


def drawn_fitness(seed):
    """A worth for each subnet that no structure tells: only trying finds the best."""
    return lambda subnet: Random(f'{seed} {subnet}').randrange(50)


def smooth_fitness(subnet):
    """Best at sizes 4 in the first four blocks of the one kind and two of the other."""
    wanted = ((4, 4, 4, 4, 0, 0), (2, 2, 0, 0, 0, 0))
    pairs = (
        pair
        for dims, best in zip(subnet, wanted, strict=True)
        for pair in zip([*dims, *[0] * (6 - len(dims))], best, strict=True)
    )
    return -sum(abs(given - best) for given, best in pairs)


@pytest.mark.parametrize('limit', [35, 90, 150, 1000])
@pytest.mark.parametrize('seed', range(3))
def test_search_with_time_for_all_finds_what_trying_all_finds(limit, seed):
    fitness = drawn_fitness(seed)
    patient = replace(SETTINGS, population=40, generations=12)
    found = patient.search(TINY, fitness, num_params, limit, Random(seed))
    best = best_subnet(TINY, fitness, num_params, limit)
    assert (found.subnet, found.fitness) == (best, fitness(best))
    within = sum(num_params(subnet) <= limit for subnet in all_subnets(TINY))
    assert found.tried == within


def test_search_asks_once_for_each_and_never_above_the_limit():
    asked = []

    def fitness(subnet):
        asked.append(subnet)
        return smooth_fitness(subnet)

    found = SETTINGS.search(WIDE, fitness, num_params, 250, Random(0))
    assert len(set(asked)) == len(asked) == found.tried <= 20 * 9
    assert max(map(num_params, asked)) <= 250
    assert set(asked[0][0]) <= {1, 2, 4, 8} and len(asked[0]) == 2


def test_search_beats_as_many_random_candidates():
    """On a landscape with a slope, over ten seeds; the optimum is 0."""
    ours, random = [], []
    for seed in range(10):
        found = SETTINGS.search(WIDE, smooth_fitness, num_params, 10**6, Random(seed))
        rng = Random(seed)
        ours.append(found.fitness)
        random.append(max(smooth_fitness(draw(WIDE, rng)) for _ in range(found.tried)))
    assert sum(ours) > sum(random) / 2


def test_search_is_decided_by_its_random_numbers():
    def run(seed):
        asked = []
        SETTINGS.search(WIDE, lambda s: asked.append(s) or 0.0, num_params, 300, Random(seed))
        return asked

    assert run(1) == run(1) != run(2)


def test_search_prefers_fewer_parameters_among_equals():
    found = SETTINGS.search(TINY, lambda subnet: 1.0, num_params, 10**6, Random(0))
    assert found.subnet == smallest(TINY)


def test_search_under_the_tightest_limit_finds_the_only_subnet():
    """Where random candidates hardly ever fit, they are made smaller until they do."""
    limit = num_params(smallest(WIDE))
    found = SETTINGS.search(WIDE, smooth_fitness, num_params, limit, Random(0))
    assert found.subnet == smallest(WIDE) and found.tried == 1
    # The smallest, and those with a single size one step larger.
    few = replace(SETTINGS, population=5, generations=0)
    assert few.search(WIDE, smooth_fitness, num_params, limit + 10, Random(0)).tried == 5


def test_search_without_generations_is_a_random_one():
    none = replace(SETTINGS, generations=0)
    assert none.search(WIDE, smooth_fitness, num_params, 10**6, Random(0)).tried == 20


def test_draws_are_uniform_in_depths_and_sizes():
    rng, count = Random(0), 3000
    drawn = [draw(WIDE, rng) for _ in range(count)]
    for kind in (0, 1):
        depths = Counter(len(subnet[kind]) for subnet in drawn)
        assert set(depths) == {2, 4, 6}
        assert all(abs(n - count / 3) < 150 for n in depths.values())
        first = Counter(subnet[kind][0] for subnet in drawn)
        assert set(first) == {1, 2, 4, 8} and all(abs(n - count / 4) < 150 for n in first.values())


def test_smallest_and_largest_bound_every_subnet():
    sizes = [num_params(subnet) for subnet in all_subnets(TINY)]
    assert num_params(smallest(TINY)) == min(sizes)
    assert num_params(largest(TINY)) == max(sizes)


def test_mutation_changes_depths_or_sizes_and_stays_in_the_space():
    rng, parent = Random(0), ((1, 2, 4, 8), (8, 8))
    children = [SETTINGS.mutate(parent, WIDE, rng) for _ in range(500)]
    kept = [child for child in children if child == parent]
    assert 0 < len(kept) < 250  # each kind is left alone half of the time
    lengths = {len(child[0]) for child in children}
    assert lengths == {2, 4, 6}
    for child in children:
        assert all(set(dims) <= {1, 2, 4, 8} and len(dims) in (2, 4, 6) for dims in child)
        if len(child[0]) != 4:  # another depth leaves the sizes of the blocks that stay
            assert child[0][:4] == parent[0][: len(child[0])]
    assert any(len(child[0]) == 4 and child[0] != parent[0] for child in children)


def test_crossing_takes_each_kind_whole_from_a_parent():
    rng, first, second = Random(0), ((1, 1), (2, 2, 2, 2)), ((8, 8, 8, 8), (4, 4))
    children = {cross(first, second, rng) for _ in range(100)}
    assert children == {(a, b) for a in (first[0], second[0]) for b in (first[1], second[1])}
