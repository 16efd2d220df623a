"""The modules that NOAH's subnets are made of, as three other methods plan them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cdra_mm.core import Block, Part
from cdra_mm.errors import PlanError

from .adapter import AdapterTuning
from .base import Method, Request
from .evolution import Subnet
from .lora import LoRA
from .vpt import VPTDeep

__all__ = ['MODULES', 'ModuleTable']

# Setting with the sizes -> the method that puts modules of one size and this dropout everywhere.
MODULES: dict[str, Callable[[int, float], Method]] = {
    'prompt_dims': lambda size, dropout: VPTDeep(size, dropout),
    'lora_dims': lambda size, dropout: LoRA(size, size, dropout),
    'adapter_dims': lambda size, dropout: AdapterTuning(size),
}

Record = Block | Part


class ModuleTable:
    """For each kind and size of a module its records, block by block.

    Args:
        request: The run's; its backbone is plain.
        sizes: Setting of `MODULES` -> sizes, for each kind that is there.
        dropout: Of prompts and LoRA.

    Raises:
        PlanError: If the backbone has no blocks, or one lacks what a module is put on.
    """

    def __init__(
        self, request: Request, sizes: Mapping[str, Sequence[int]], dropout: float
    ) -> None:
        self.blocks = request.layers()
        if not self.blocks:
            raise PlanError(f'{type(request.backbone).__name__} has no transformer blocks')
        self._records = [
            {size: self._planned(request, setting, size, dropout) for size in given}
            for setting, given in sizes.items()
        ]
        self._counts = [
            {size: [sum(r.num_params for r in place) for place in places] for size, places in kind}
            for kind in map(dict.items, self._records)
        ]

    def records(self, subnet: Subnet) -> list[Record]:
        """The records of a subnet's modules."""
        return [
            record
            for kind, dims in zip(self._records, subnet, strict=True)
            for place, size in enumerate(dims)
            for record in kind[size][place]
        ]

    def num_params(self, subnet: Subnet) -> int:
        """The parameters that a subnet trains."""
        return sum(
            kind[size][place]
            for kind, dims in zip(self._counts, subnet, strict=True)
            for place, size in enumerate(dims)
        )

    def _planned(
        self, request: Request, setting: str, size: int, dropout: float
    ) -> list[list[Record]]:
        try:
            plan = MODULES[setting](size, dropout).plan(request)
        except PlanError as error:
            raise PlanError(f'{error} (noah leaves these modules out with {setting}=[])') from None
        assert plan is not None
        records: list[Record] = [*plan.blocks, *plan.parts]
        places = [[r for r in records if r.name.startswith(f'{b}.')] for b in self.blocks]
        for block, found in zip(self.blocks, places, strict=True):
            if not found:
                raise PlanError(
                    f'{block} has nothing that {plan.method} is put on: leave these modules out '
                    f'with {setting}=[]'
                )
        return places
