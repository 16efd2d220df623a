"""A config meets a model: adapters are put on, switched, merged, saved and taken off as peft asks.

What a plan trains whole in an OpenMMLab run (vectors, tokens) is trained here as what is added to
it, so that the base is there all the time, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from cdra_mm.core import ParameterAdapter, Plan
from cdra_mm.core.adapters.adapted import require_free_name
from cdra_mm.core.adapters.apply import check_shapes
from cdra_mm.core.adapters.merging import NOT_INTO_INT8, restore_classes
from cdra_mm.core.adapters.small_base import refuse_int8
from cdra_mm.errors import CheckpointError, ConfigError

from .base import check_base_of, check_places, plain_class
from .config import PEFT_TYPE, CdraConfig
from .files import check_rest, pack_adapter, slots_of, unpack_adapter
from .first_values import begin, delta_adapters
from .layer import CdraLayer, put_on
from .names import check_name, check_sum, require_names
from .weighted import weighted_sum

__all__ = ['CdraModel', 'register']


class CdraModel(BaseTuner):
    """The tuner of CDRA; ``get_peft_model`` makes it from a `CdraConfig`."""

    prefix = 'cdra_'
    tuner_layer_cls = CdraLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Puts the adapter of a config on the model; a refused one leaves it as it was.

        In the place of peft's own, which looks for modules by their names: a plan knows its
        places, among them parameters of the model itself.

        Args:
            model: The model.
            adapter_name: The name of the adapter, whose config is known.
            autocast_adapter_dtype: Not used: values are fp32 beside any base.
            low_cpu_mem_usage: Whether the values are to be made without memory for them.
            state_dict: Not used: the plan says what there is.

        Raises:
            ConfigError: If the config has no plan, or the name cannot be one.
            PlanError: If it does not fit the model, or its base weights are others.
        """
        config = self._config(adapter_name)
        plan = config.require_plan()
        check_name(adapter_name)
        is_first = not any(isinstance(module, CdraLayer) for module in model.modules())
        if is_first:
            require_free_name(model)
        check_places(model, config)
        check_shapes(model, plan)
        others = (c for name, c in self.peft_config.items() if name != adapter_name)
        check_base_of(model, config, [getattr(c, 'base_fingerprint', '') for c in others])
        slots = delta_adapters(model, plan)
        base = plain_class(model)
        config.auto_mapping = {
            'base_model_class': base.__name__, 'parent_library': base.__module__,
        }  # fmt: skip
        if not low_cpu_mem_usage:
            begin(plan, slots, config)
        before = [] if is_first else [(p, p.requires_grad) for p in model.parameters()]
        for layer in self._layers():  # of a peft model that this one is made on the model of
            layer.drop(adapter_name)
        for path, _, adapter in slots:  # nothing fails from here on
            if low_cpu_mem_usage:
                for name, value in list(adapter.named_parameters()):
                    setattr(adapter, name, nn.Parameter(value.detach().to('meta')))
            if path not in self.targeted_module_names:
                self.targeted_module_names.append(path)
        put_on(model, slots, adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(model)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        for parameter, requires_grad in before:
            parameter.requires_grad = requires_grad

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """Not called: no module is replaced (`inject_adapter`)."""
        raise NotImplementedError

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Puts what was trained whole in its wrapper's place; peft's own asks it for a weight."""
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter; where it was active, all modules go on with the same other one."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        left = [name for name in self.active_adapters if name in self.peft_config]
        if was_active:
            left = left or list(self.peft_config)[:1]
            self.active_adapter = left
            for layer in self._layers():
                cast(Any, layer).set_adapter(left)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Values are fp32 at least beside any base; or, where peft is told so, of its type."""
        if autocast_adapter_dtype:
            return
        for layer in self._layers():
            if adapter_name in layer.cdra_adapters:
                for adapter in layer.named(adapter_name).children():
                    assert isinstance(adapter, ParameterAdapter)
                    like = layer.owner._parameters[adapter.parameter]
                    assert like is not None
                    adapter.to(like.dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuses what peft would leave out without a word."""
        if kwargs.get('adapter_names') is not None:
            raise ConfigError(
                'adapter_names: a batch of several CDRA adapters is not there; call set_adapter '
                'and one batch after another, or use cdra_mm.core.MultiTask'
            )
        yield

    def set_adapter(
        self, adapter_name: str | Sequence[str], inference_mode: bool = False, **kwargs: Any
    ) -> None:
        """See ``BaseTuner.set_adapter``; a name that is none is refused."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        require_names(self.peft_config, names)
        super().set_adapter(adapter_name, inference_mode=inference_mode, **kwargs)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """See ``BaseTuner.merge_adapter``; a name that is none is refused."""
        require_names(self.peft_config, adapter_names)
        refuse_int8(self.model, *NOT_INTO_INT8)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            require_names(self.peft_config, adapter_names)
            refuse_int8(self.model, *NOT_INTO_INT8)
            self._check_merge_allowed()
            for layer in self._layers():
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        restore_classes(self.model)
        # What is left are the wrappers of modules_to_save.
        return cast(nn.Module, super()._unload_and_optionally_merge(merge=False))

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = 'cat',
    ) -> None:
        """Adds an adapter whose update is the weighted sum of those of others.

        Args:
            adapters: Names of the others.
            weights: A weight for each.
            adapter_name: Name of the new one; it is not active yet.
            combination_type: ``'cat'``: the blocks of a matrix side by side in one of their rows
                and columns, which is the exact sum.

        Raises:
            ConfigError: If the names, weights or the type are none, or two of the adapters bring
                modules of their own along, of which there is no sum.
        """
        check_sum(self.peft_config, adapters, weights, adapter_name, combination_type)
        configs = [self._config(name) for name in adapters]
        values = [self._values(name) for name in adapters]
        plans = [config.require_plan() for config in configs]
        plan, summed = weighted_sum(plans, values, weights)
        self.peft_config[adapter_name] = replace(
            configs[0], plan=plan, start=None, modules_to_save=None
        )
        self.peft_config[adapter_name].inference_mode = False
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        with torch.no_grad():
            for own, value in zip(self._tensors(adapter_name), summed, strict=True):
                own.copy_(value)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: CdraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What is saved of an adapter; peft adds what `modules_to_save` names."""
        if not state_dict:  # as processes have it that write nothing
            return {}
        plan = config.require_plan()
        keys = _keys(model, plan, adapter_name)
        lacking = [key for key in keys if key not in state_dict]
        if lacking:
            raise CheckpointError(
                f'the state dict lacks {len(lacking)} of the {len(keys)} tensors of the adapter '
                f'{adapter_name!r} (the first is {lacking[0]}): give that of the whole peft model'
            )
        return pack_adapter(plan, [state_dict[key] for key in keys])

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # those of `_get_adapter_state_dict` have none

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: CdraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The reverse of `_get_adapter_state_dict`."""
        plan = config.require_plan()
        what = f'the adapter {adapter_name!r}'
        values = unpack_adapter(state_dict, plan, what)
        packed = pack_adapter(plan, values).keys()
        rest = {key: value for key, value in state_dict.items() if key not in packed}
        check_rest(model, rest, adapter_name, what)
        return {**rest, **dict(zip(_keys(model, plan, adapter_name), values, strict=True))}

    def _config(self, name: str) -> CdraConfig:
        return cast(CdraConfig, self.peft_config[name])

    def _layers(self) -> Iterator[CdraLayer]:
        return (module for module in self.model.modules() if isinstance(module, CdraLayer))

    def _tensors(self, name: str) -> list[nn.Parameter]:
        """What an adapter trains, as `slots_of` names it."""
        keys = _keys(self.model, self._config(name).require_plan(), name)
        return [self.model.get_parameter(key) for key in keys]

    def _values(self, name: str) -> list[Tensor]:
        return [tensor.detach() for tensor in self._tensors(name)]


def register() -> None:
    """Makes the config and the tuner known to peft."""
    mappings: list[tuple[Any, Any]] = [
        (PEFT_TYPE_TO_CONFIG_MAPPING, CdraConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, CdraModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, CdraModel.prefix),
    ]
    for mapping, value in mappings:
        mapping[PEFT_TYPE] = value


def _keys(model: nn.Module, plan: Plan, adapter_name: str) -> list[str]:
    """State-dict keys of an adapter's tensors, as `slots_of` names them."""
    # Of a PeftModel, or of a model that adapters were injected into.
    wrapped = (
        'base_model.model.' if isinstance(getattr(model, 'base_model', None), BaseTuner) else ''
    )
    keys = []
    for name, tensor, _ in slots_of(plan):
        module, _, suffix = name.rpartition('.')
        inside = f'cdra.cdra_adapters.{adapter_name}.{suffix}.{tensor}'
        keys.append(wrapped + f'{module}.{inside}'.lstrip('.'))
    return keys
