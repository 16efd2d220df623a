"""How far the adapters of a model have moved it, in a few numbers.

relative change     ||W' - W|| / ||W||, Frobenius, of the adapted matrix, vector or part
effective rank      how many directions the update really has (`cdra_mm.core.adapters.spectrum`)
relative update     ||update|| / ||what it changes||: of a low-rank block the block itself,
                    whose matrix may be much larger; of any other adapter the relative change
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
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
        self._backbone = backbone
        self._targets = {
            name: resolve(backbone, name)
            for name, adapter in self.adapters.items()
            if isinstance(adapter, ParameterAdapter)
        }
        # What a relative change is relative to: views.
        self.bases: dict[str, Tensor] = {
            name: parameter_of(backbone, target).detach() for name, target in self._targets.items()
        }
        self._block_norms: dict[str, float] = {}

    @cached_property
    def norms(self) -> dict[str, float]:
        """The norm of what each adapter changes; a run does not wait for it before it begins."""
        views = {name: view_of(target, self.bases[name]) for name, target in self._targets.items()}
        return _read(
            {name: view.norm(dtype=torch.float32).double() for name, view in views.items()}
        )

    @cached_property
    def roles(self) -> dict[str, str]:
        """The role of each target in its block; one outside of them is known by its path."""
        inside = find_targets(self._backbone) if self._targets else {}
        return {name: inside.get(name, own).role for name, own in self._targets.items()}

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Means over the adapters, by name.

        Returns:
            ``relative_change/<role>`` of adapters that change a weight,
            ``parameter_norm/<kind>`` of the others, and ``rank_in_use``: the effective ranks over
            the planned ones, each adapter by its size ``|R| + |C|``: a share of the parameters.
            At most two waits for the device.
        """
        found: dict[str, list[float]] = defaultdict(list)
        used = planned = 0.0
        blocks = {n: a for n, a in self.adapters.items() if isinstance(a, LowRank)}
        factors = _on_cpu([factor for adapter in blocks.values() for factor in adapter.factors])
        spectra = {
            name: update_spectrum(factors[2 * i + 1], factors[2 * i], adapter.scale)
            for i, (name, adapter) in enumerate(blocks.items())
        }
        others = _read({n: self._change(n) for n in self.adapters if n not in blocks})
        for name, adapter in self.adapters.items():
            if not isinstance(adapter, ParameterAdapter):
                found[f'parameter_norm/{adapter.kind}'].append(others[name])
                continue
            if isinstance(adapter, LowRank):
                size = adapter.up.shape[0] + adapter.down.shape[1]
                used += effective_rank(spectra[name]) * size
                planned += adapter.up.shape[1] * size
            if self.norms[name]:  # of a zero there is no relative change
                change = float(spectra[name].norm()) if name in spectra else others[name]
                found[f'relative_change/{self.roles[name]}'].append(change / self.norms[name])
        scalars = {key: sum(values) / len(values) for key, values in found.items()}
        return scalars | ({'rank_in_use': used / planned} if planned else {})

    def _change(self, name: str) -> Tensor:
        """The norm of what an adapter adds to a parameter, or of its own parameters."""
        adapter = self.adapters[name]
        if isinstance(adapter, ParameterAdapter):
            base = self.bases[name]
            return (adapter.added_to(base) - base).norm(dtype=torch.float32).double()
        squares = [p.square().sum().double() for p in adapter.parameters()]
        return sum(squares, start=torch.zeros((), dtype=torch.float64)).sqrt()

    @torch.no_grad()
    def relative_updates(self) -> dict[str, list[float]]:
        """The relative update of each adapter that changes a matrix, by kind of adapter.

        A vector is left out: a bias may start near zero, and its size is no scale of what may be
        added to it. What was zero before the update has none either, once there is an update: no
        update at all is one of 0, whatever it is relative to. At most two waits for the device.
        """
        updates: dict[str, Tensor] = {}
        for name, base in self.bases.items():
            adapter: Any = self.adapters[name]  # merges, as its base is told
            if base.dim() < 2:
                continue
            if isinstance(adapter, LowRank):
                updates[name] = update_norm(adapter.up, adapter.down, adapter.block[2])
            else:
                updates[name] = self._change(name)
        found: dict[str, list[float]] = defaultdict(list)
        changes = _read(updates)
        sizes = self._sizes([name for name, change in changes.items() if change])
        for name, change in changes.items():
            if sizes.get(name, 1.0):
                found[self.adapters[name].kind].append(change / sizes.get(name, 1.0))
        return dict(found)

    def _sizes(self, names: list[str]) -> dict[str, float]:
        """The norms of what these adapters change: of a low-rank block the block itself.

        Read when they are needed: a gather from every matrix, and the adapters of a run begin at 0.
        """
        unknown: dict[str, Tensor] = {}
        for name in names:
            adapter = self.adapters[name]
            if isinstance(adapter, LowRank) and name not in self._block_norms:
                rows, cols, _ = adapter.block
                unknown[name] = self.bases[name][rows][:, cols].norm(dtype=torch.float32).double()
        self._block_norms |= _read(unknown)  # of the frozen base: they stay
        known = self._block_norms
        return {name: known[name] if name in known else self.norms[name] for name in names}


def _read(values: dict[str, Tensor]) -> dict[str, float]:
    if not values:
        return {}
    numbers: list[float] = torch.stack(_together(list(values.values()))).tolist()
    return dict(zip(values, numbers, strict=True))


def _on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """The same on the CPU, by one copy."""
    if not tensors:
        return []
    flat = torch.cat(_together([tensor.detach().flatten() for tensor in tensors])).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """The same on one device: a backbone may lie on several."""
    return [tensor.to(tensors[0].device) for tensor in tensors]
