"""How far the adapters of a model have moved it, in a few numbers.

relative change     ||W' - W|| / ||W||, Frobenius, of the adapted matrix, vector or part
effective rank      how many directions the update really has (`cdra_mm.core.adapters.spectrum`)
relative update     ||update|| / ||what it changes||: of a low-rank block the block itself,
                    whose matrix may be much larger; of any other adapter the relative change
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, adapters, find_targets, resolve
from cdra_mm.core.adapters.low_rank import LowRank
from cdra_mm.core.adapters.spectrum import effective_rank, update_norm, update_spectrum
from cdra_mm.core.model.targets import parameter_of, view_of

__all__ = ['AdapterGrowth']


class AdapterGrowth:
    """Looks at the adapters of a backbone while it is trained."""

    def __init__(self, backbone: nn.Module) -> None:
        self.adapters = adapters(backbone)
        self.bases: dict[str, Tensor] = {}  # what a relative change is relative to: views
        self.norms: dict[str, float] = {}
        self.roles: dict[str, str] = {}
        targets = find_targets(backbone) if self.adapters else {}
        for name, adapter in self.adapters.items():
            if not isinstance(adapter, ParameterAdapter):
                continue
            # One outside the blocks, such as a patch embedding's, is known by its path.
            target = targets.get(name) or resolve(backbone, name)
            base = parameter_of(backbone, target).detach()
            self.bases[name], self.roles[name] = base, target.role
            self.norms[name] = float(view_of(target, base).norm(dtype=torch.float32))

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Means over the adapters, by name.

        Returns:
            ``relative_change/<role>`` of adapters that change a weight,
            ``parameter_norm/<kind>`` of the others, and ``rank_in_use``: the effective ranks over
            the planned ones, each adapter by its size ``|R| + |C|``: a share of the parameters.
        """
        found: dict[str, list[float]] = defaultdict(list)
        used = planned = 0.0
        for name, adapter in self.adapters.items():
            if isinstance(adapter, LowRank):
                spectrum = update_spectrum(adapter.up, adapter.down, adapter.scale)
                change = float(spectrum.norm())
                size = adapter.up.shape[0] + adapter.down.shape[1]
                used += effective_rank(spectrum) * size
                planned += adapter.up.shape[1] * size
            elif isinstance(adapter, ParameterAdapter):
                base = self.bases[name]
                change = float((adapter.added_to(base) - base).norm(dtype=torch.float32))
            else:
                squares = (float(p.square().sum()) for p in adapter.parameters())
                found[f'parameter_norm/{adapter.kind}'].append(sum(squares) ** 0.5)
                continue
            if self.norms[name]:  # of a zero there is no relative change
                found[f'relative_change/{self.roles[name]}'].append(change / self.norms[name])
        scalars = {key: sum(values) / len(values) for key, values in found.items()}
        return scalars | ({'rank_in_use': used / planned} if planned else {})

    @torch.no_grad()
    def relative_updates(self) -> dict[str, list[float]]:
        """The relative update of each adapter that changes a matrix, by kind of adapter.

        A vector is left out: a bias may start near zero, and its size is no scale of what may be
        added to it. What was zero before the update has none either. One wait for the device.
        """
        kinds, pairs = [], []
        for name, base in self.bases.items():
            adapter = self.adapters[name]
            if base.dim() < 2:
                continue
            if isinstance(adapter, LowRank):
                rows, cols, scale = adapter.block
                update = update_norm(adapter.up, adapter.down, scale)
                whole = base[rows][:, cols].norm(dtype=torch.float32).double()
            else:
                grown: Any = adapter  # merges, as its base is told
                update = (grown.added_to(base) - base).norm(dtype=torch.float32).double()
                whole = update.new_tensor(self.norms[name])
            kinds.append(adapter.kind)
            pairs.append(torch.stack([update, whole]))
        found: dict[str, list[float]] = defaultdict(list)
        for kind, (change, size) in zip(kinds, _read(pairs), strict=True):
            if size:
                found[kind].append(change / size)
        return dict(found)


def _read(pairs: list[Tensor]) -> list[list[float]]:
    values: list[list[float]] = torch.stack(pairs).tolist() if pairs else []
    return values
