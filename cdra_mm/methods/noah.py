"""NOAH: prompts, LoRA and bottlenecks of searched sizes (Neural prOmpt seArcH).

Zhang et al., *Neural Prompt Search*, arXiv 2206.04673 (TPAMI 2024), and their released code.
Three steps: a supernet with every module at its largest is trained, at each iteration as one
random subnet; an evolutionary search (`evolution`) finds the subnet within a limit of parameters
that does best on held-out samples, with the supernet's weights; that subnet is then
trained from fresh initial values, as their retraining is. The first two happen while the run
makes its plan, the third is the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, ClassVar

from torch import nn

from cdra_mm.core import Block, Part, Plan
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.settings import count, probability, setting

from .base import Method, Request
from .evolution import Choice, Evolution, Space, Subnet, draw, largest, smallest
from .module_table import MODULES, ModuleTable

__all__ = ['NOAH']

PUBLISHED_LIMIT = 640_000  # parameters, of ViT-B/16
DIMS = (5, 10, 50, 100)

Record = Block | Part


@dataclass(frozen=True)
class NOAH(Method):
    """The row "NOAH": what its search finds best, of the three modules of other rows.

    A subnet has, for each kind, modules in the first d blocks, d its depth, and each module a size
    of its own: `VPTDeep`'s prompts, `LoRA` on q and v with a scale of 1, the bottleneck of
    `AdapterTuning`. In the supernet a smaller module is the first rows and columns of the largest
    one (`sharing`).

    The defaults are those of the released code's scripts. Decided where it is peculiar or where it
    differs from the methods here:

    - Modules are those of the other rows, so that they can be compared. The code's LoRA adapts
      the fused q, k and v through one `down` (as many parameters as q and v with one each), its
      bottleneck has another GELU, dropout inside and no zeros among its initial values, and its
      last prompts go on through the blocks behind the depth. Here prompts end with their block.
    - The limit is of the parameters that are trained in the backbone. The code also counts two
      sets of input prompts that its first block throws away.
    - A mutation that leaves the depth draws sizes anew, as AutoFormer's does; in the code it
      leaves everything as it was. The last generation counts; in the code it is measured
      and forgotten. Subnets that are equally fit are told apart by their parameters.
    - The scripts name ``supernet-B_prompt.yaml``, with sizes of 5, 10, 50 and 100: the defaults
      here. What was found for VTAB-1k fits ``supernet-B_prompt_VTAB.yaml``, with 1, 5 and 10: all
      19 released subnets have these sizes, each kind in all 12 blocks, and train 287 278 to
      431 686 parameters. The rows of the tables take these (``configs/_base_/tables/methods.py``).
    - Their depths 3, 6, 9 and 12 are quarters of 12 blocks; so they are for any backbone.
    - The held-out samples are drawn from the run's training data, and the final training uses
      all of these. A run on VTAB's train800 holds out 160, so that val200 still says something
      about the run's settings; the final run on train800val200 holds out 200, as the paper does.

    Neither prompts nor bottlenecks merge, so NOAH does not.

    Attributes:
        prompt_dims: Numbers of prompts to choose from; [] leaves prompts out.
        lora_dims: Ranks; [] leaves LoRA out.
        adapter_dims: Hidden units of the bottlenecks; [] leaves these out.
        depths: Numbers of first blocks that have a module, for each kind; None for a quarter,
            a half, three quarters and all of the blocks, rounded up.
        dropout: Probability of dropping a prompt's entry or an input of LoRA in training.
        budget_params: The limit, a count of trained backbone parameters; 640 000 where neither
            this nor `budget_percent` is given.
        budget_percent: The same as a percentage of the backbone's parameters.
        supernet_epochs: Passes of the supernet over the training samples that are not held out.
        supernet_iters: Its iterations instead, for large data sets.
        supernet_lr_mult: Its learning rates over those of the run (theirs are 5e-4 and 1e-3); they
            fall to zero along a cosine.
        held_out: Share of the training samples that the search measures subnets on.
        max_held_out: The most of them; they stay in memory.
        population: Candidates of a generation.
        num_parents: The best so far, from which the next generation comes.
        num_mutations: Mutated candidates of a generation.
        num_crossovers: Crossed candidates of a generation.
        generations: Generations after the first, random one.
        mutation_prob: Probability that a kind of module is mutated, and then each size of it.
        depth_prob: Probability that a mutation is one of the depth.
    """

    name: ClassVar[str] = 'noah'
    needs_search: ClassVar[bool] = True

    prompt_dims: Sequence[int] = DIMS
    lora_dims: Sequence[int] = DIMS
    adapter_dims: Sequence[int] = DIMS
    depths: Sequence[int] | None = None
    dropout: float = probability(0.1)
    budget_params: int | None = count(None)
    budget_percent: float | None = setting(None, minimum=0, maximum=100, what='a percentage')
    supernet_epochs: int = count(500)
    supernet_iters: int | None = count(None)
    supernet_lr_mult: float = setting(0.5, minimum=0)
    held_out: float = setting(0.2, above=0, below=1, what='a share')
    max_held_out: int = count(200)
    population: int = count(50)
    num_parents: int = count(10)
    num_mutations: int = count(25, 0)
    num_crossovers: int = count(25, 0)
    generations: int = count(15, 0)
    mutation_prob: float = setting(0.2, minimum=0, maximum=1, what='a probability')
    depth_prob: float = setting(0.4, minimum=0, maximum=1, what='a probability')

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*MODULES, 'depths'):
            if getattr(self, name) is not None:
                # A list, as configs and checkpoints hold it: a resumed run compares the two.
                object.__setattr__(self, name, _sizes(name, getattr(self, name)))
        if not any(getattr(self, name) for name in MODULES):
            raise ConfigError(f'{", ".join(MODULES)} are all empty: there is nothing to search for')
        if self.depths == []:
            raise ConfigError('depths=[]: expected at least one number of blocks, or None')
        if self.budget_params is not None and self.budget_percent is not None:
            raise ConfigError(
                f'budget_params={self.budget_params}, budget_percent={self.budget_percent}: give '
                'only one of them'
            )

    def plan(self, request: Request) -> Plan | None:
        """Trains the supernet, searches, and plans the subnet that was found.

        Raises:
            PlanError: If a block lacks what a module is put on, there are fewer blocks than a
                depth, no subnet is within the limit, or there is no run to try subnets in.
        """
        trials = request.trials
        kinds = {name: getattr(self, name) for name in MODULES if getattr(self, name)}
        table = ModuleTable(request, kinds, self.dropout)
        space = self._space(kinds.values(), len(table.blocks))
        limit = self._limit(request.backbone)

        def plan_of(subnet: Subnet) -> Plan:
            records = table.records(subnet)
            return request.record(
                self,
                blocks=tuple(record for record in records if isinstance(record, Block)),
                parts=tuple(record for record in records if isinstance(record, Part)),
            )

        least = table.num_params(smallest(space))
        if least > limit:
            raise PlanError(
                f'the limit is {limit} parameters, the smallest subnet trains {least}: give a '
                'larger budget_params or budget_percent, smaller sizes or smaller depths'
            )
        if trials is None:
            raise PlanError(
                'noah finds its plan by training: it needs a run with training data (CDRAHook), or '
                'the plan of one'
            )
        rng = Random(trials.seed)
        trials.train(
            plan_of(largest(space)),
            lambda: plan_of(draw(space, rng)),
            epochs=self.supernet_epochs,
            iters=self.supernet_iters,
            lr_mult=self.supernet_lr_mult,
            held_out=self.held_out,
            max_held_out=self.max_held_out,
        )
        found = self._evolution.search(
            space, lambda subnet: trials.fitness(plan_of(subnet)), table.num_params, limit, rng
        )
        plan = plan_of(found.subnet)
        outcome = {'limit': limit, 'fitness': found.fitness, 'tried': found.tried}
        return replace(plan, settings={**plan.settings, **outcome})

    @property
    def _evolution(self) -> Evolution:
        return Evolution(**{field.name: getattr(self, field.name) for field in fields(Evolution)})

    def _limit(self, backbone: nn.Module) -> int:
        if self.budget_percent is None:
            return self.budget_params or PUBLISHED_LIMIT
        total = sum(parameter.numel() for parameter in backbone.parameters())
        return int(total * self.budget_percent / 100)

    def _space(self, kinds: Iterable[Sequence[int]], num_blocks: int) -> Space:
        depths = self.depths
        if depths is None:
            depths = sorted({math.ceil(num_blocks * quarter / 4) for quarter in (1, 2, 3, 4)})
        if max(depths) > num_blocks:
            raise PlanError(
                f'depths={list(depths)}: the backbone has {num_blocks} transformer blocks; leave '
                'depths out for a quarter, a half, three quarters and all of them'
            )
        return tuple(Choice(tuple(sizes), tuple(depths)) for sizes in kinds)


def _sizes(name: str, values: Any) -> list[int]:
    if not all(value > 0 for value in values):
        raise ConfigError(f'{name}={values!r}: expected a list of counts of at least 1')
    return sorted(set(values))
