"""The adapters of one module, by the names that peft gives them.

The module stays where it is and what it is (`core.adapters.layers`): its class becomes a subclass
that adds what is in use, whoever reads its weights, and a child ``cdra`` holds the adapters. That
child is what peft knows as a tuner layer.

    qkv                                                 the module, its parameters frozen
    qkv.cdra                                            this
    qkv.cdra.cdra_adapters.<name>.weight:q.{down, up}   a block
    qkv.cdra.cdra_adapters.<name>.bias.value            entries
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from cdra_mm.core import Adapter, ParameterAdapter
from cdra_mm.core.adapters.adapter_set import AdapterSet
from cdra_mm.core.adapters.copied_weights import attach_copies
from cdra_mm.core.adapters.layers import (
    AdapterSlot,
    choose_class,
    sharing,
    users_of_parameters,
)

__all__ = ['CdraLayer', 'put_on']


class CdraLayer(AdapterSet, BaseTunerLayer):
    """The named adapters of one module; those in use are the active ones that are not merged.

    Args:
        owner: The module.

    Attributes:
        cdra_adapters: Core's adapters by peft's name, then by the target's name in the module.
        lenders: Of parameters that this module shares with another one, which holds their
            adapters: the other's layer and the parameter's name there.
        borrowers: The layers of which this one is a lender.
        kept: The module's own parameters as they were before adapters were merged into them.
    """

    adapter_layer_names = ('cdra_adapters',)

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, or it would be a child
        self.cdra_adapters = nn.ModuleDict()
        self.lenders: dict[str, list[tuple[CdraLayer, str]]] = {}
        self.borrowers: list[CdraLayer] = []
        self.kept: dict[str, Tensor] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.cast_input_dtype_enabled = True  # peft's helpers switch it; nothing is cast here
        self._active_adapter: str | list[str] = []

    @property
    def owner(self) -> nn.Module:
        """The module that this adapts."""
        return self._owner[0]

    def get_base_layer(self) -> nn.Module:
        """The module that this adapts, for peft."""
        return self.owner

    @property
    def in_features(self) -> int | None:
        """That of the module, where it is a linear layer."""
        return getattr(self.owner, 'in_features', None)

    @property
    def out_features(self) -> int | None:
        """That of the module, where it is a linear layer."""
        return getattr(self.owner, 'out_features', None)

    def named(self, name: str) -> nn.ModuleDict:
        """The adapters of one of peft's names."""
        return cast(nn.ModuleDict, self.cdra_adapters[name])

    def in_use(self) -> list[str]:
        """The names whose adapters are added in a forward."""
        if self.disable_adapters:
            return []
        active = cast('list[str]', self.active_adapters)
        names = (name for name in active if name in self.cdra_adapters)
        return [name for name in names if name not in self.merged_adapters]

    def present(self) -> Iterator[Adapter]:
        """See `AdapterSet.present`."""
        for named in self.cdra_adapters.values():
            yield from cast('Iterator[Adapter]', named.children())

    def of(self, parameter: str, *, merged: bool = False) -> Iterator[ParameterAdapter]:
        """The adapters of one parameter that are in use; see `AdapterSet.of`."""
        for name in self.in_use():
            for adapter in cast('Iterator[ParameterAdapter]', self.named(name).children()):
                if adapter.parameter == parameter:
                    yield adapter
        for lender, theirs in self.lenders.get(parameter, ()):
            yield from lender.of(theirs)

    def joined(self) -> None:
        """Takes note of what is in use now: a forward does not ask again (nor does a compiled one).

        Called where that changes.
        """
        for layer in (self, *self.borrowers):
            layer.join(layer.owner)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """See ``BaseTunerLayer.set_adapter``."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.joined()

    def delete_adapter(self, adapter_name: str) -> None:
        """See ``BaseTunerLayer.delete_adapter``."""
        super().delete_adapter(adapter_name)
        self.joined()

    def enable_adapters(self, enabled: bool) -> None:
        """Switches all adapters on or off; off, the module has the base's values bit for bit."""
        if not enabled:
            self.unmerge()
        super().enable_adapters(enabled)
        self.joined()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Puts adapters into the module's own parameters.

        Args:
            safe_merge: Refuse an adapter whose values would make a parameter not finite.
            adapter_names: Those of peft's names; default: the active ones.

        Raises:
            ValueError: If `safe_merge` finds such values; nothing is merged then.
        """
        parameters = self.owner._parameters
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.cdra_adapters:
                continue
            for adapter in cast('Iterator[ParameterAdapter]', self.named(name).children()):
                own = cast(nn.Parameter, parameters[adapter.parameter])
                self.kept.setdefault(adapter.parameter, own.detach().clone())
                adapter.merge_(self.owner)
                adapter.merged = False  # peft keeps the values of what is merged in its files
                if safe_merge and not bool(own.isfinite().all()):
                    self.unmerge()
                    raise ValueError(
                        f'NaNs detected in the merged weights. The adapter {name} seems to be '
                        'broken'
                    )
            self.merged_adapters.append(name)
        self.joined()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Gives the module its own parameters back as they were, bit for bit."""
        for parameter, value in self.kept.items():
            cast(nn.Parameter, self.owner._parameters[parameter]).copy_(value)
        self.kept.clear()
        self.merged_adapters.clear()
        self.joined()

    def drop(self, name: str) -> None:
        """Takes the adapters of one of peft's names off, merged or not."""
        if name in self.cdra_adapters:
            if name in self.merged_adapters:
                self.unmerge()
            del self.cdra_adapters[name]
            self.joined()

    def supports_lora_conversion(self, adapter_name: str = 'default') -> bool:
        """Whether peft can make a LoRA of it: `tools/merge.py --format peft` writes one."""
        return False

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves an adapter where the module is; its values keep their type."""
        like = next((p for p in self.owner._parameters.values() if p is not None), None)
        # On meta there is no memory yet: values that were read would be gone.
        if adapter_name in self.cdra_adapters and like is not None and not like.is_meta:
            named = self.named(adapter_name)
            if not any(tensor.is_meta for tensor in named.parameters()):
                named.to(device or like.device)


def put_on(model: nn.Module, slots: Iterable[AdapterSlot], name: str) -> None:
    """Puts adapters of parameters on modules of a model, in place.

    Args:
        model: The model.
        slots: The adapters, each with the path of its module and the target's name in it
            (``weight:q``).
        name: The name that peft knows them by.
    """
    users = users_of_parameters(model)
    for path, suffix, given in slots:
        adapter = cast(ParameterAdapter, given)
        module = model.get_submodule(path)
        adapter.train(module.training)
        layer = _layer_of(module)
        if name not in layer.cdra_adapters:
            layer.cdra_adapters[name] = nn.ModuleDict()
        layer.named(name)[suffix] = adapter
        touched = [module]
        for other, theirs in sharing(users, module, adapter.parameter):
            borrower = _layer_of(other)
            lent = borrower.lenders.setdefault(theirs, [])
            if not any(lender is layer for lender, _ in lent):
                lent.append((layer, adapter.parameter))
                layer.borrowers.append(borrower)
            borrower.borrowed.setdefault(theirs, [])  # so its class reads the parameter through us
            touched.append(other)
        for one in touched:
            choose_class(one)
        layer.joined()
    attach_copies(model)


def _layer_of(module: nn.Module) -> CdraLayer:
    if not hasattr(type(module), 'base_class'):
        module.add_module('cdra', CdraLayer(module))
    return cast(CdraLayer, module.cdra)
