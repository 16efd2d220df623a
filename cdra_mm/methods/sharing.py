"""A supernet: the adapters of many plans in one set of weights.

The adapters of the largest plan hold the weights. Those of a smaller one use their first rows and
columns: a matrix ``[r, C]`` is ``whole[:r, :C]``, and its gradient lands in ``whole``. An adapter
that the smaller plan does not have takes no part. So NOAH's supernet shares weights (Zhang et
al., TPAMI 2024), as AutoFormer's does (Chen et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cdra_mm.core import Plan, adapters, apply_plan, freeze_rest, remove_adapters
from cdra_mm.core.adapters.apply import planned_adapters
from cdra_mm.core.adapters.layers import adapt_modules
from cdra_mm.errors import PlanError

__all__ = ['SharedAdapters']


class SharedAdapters:
    """Puts the adapters of the largest plan on a backbone; `applied` puts a smaller plan's there.

    Args:
        backbone: A plain backbone; all of it is frozen.
        largest: The plan whose adapters hold the weights.
        seed: Seed of their initial values.

    Attributes:
        shared: The weights, by name of the adapter and of the parameter.
    """

    def __init__(self, backbone: nn.Module, largest: Plan, seed: int) -> None:
        apply_plan(backbone, largest, seed=seed)
        self.backbone, self.largest = backbone, largest
        self.shared = {
            name: dict(adapter.named_parameters()) for name, adapter in adapters(backbone).items()
        }

    @contextmanager
    def applied(self, plan: Plan) -> Iterator[None]:
        """The backbone with the adapters of a plan, which use the shared weights.

        Args:
            plan: A plan; each of its adapters is one of the largest plan's, or smaller.

        Raises:
            PlanError: If an adapter is none of the largest plan's.
        """
        remove_adapters(self.backbone, discard=True)
        try:
            slots = planned_adapters(self.backbone, plan)
            for path, suffix, adapter in slots:
                name = f'{path}.{suffix}' if path else suffix
                for key, parameter in list(adapter.named_parameters()):
                    whole = self.shared.get(name, {}).get(key, parameter[:0])
                    view = whole[tuple(slice(size) for size in parameter.shape)]
                    if view.shape != parameter.shape:
                        raise PlanError(f'{name} is larger than the one of the supernet, or new')
                    # In place of the parameter: whoever reads it computes with the whole.
                    adapter._parameters[key] = view  # type: ignore[assignment]
            adapt_modules(self.backbone, slots)
            freeze_rest(self.backbone, plan)
            yield
        finally:
            remove_adapters(self.backbone, discard=True)
