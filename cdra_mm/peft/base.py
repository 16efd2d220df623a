"""Whether a model is the one that an adapter was made for: its weights, and what they are of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn

from cdra_mm.core import Plan, digests_of, find_targets, fingerprint, resolve
from cdra_mm.core.adapters.apply import check_base
from cdra_mm.core.model.own_state import base_state
from cdra_mm.errors import ConfigError, PlanError

from .config import CdraConfig
from .layer import CdraLayer

__all__ = ['check_base_of', 'check_places', 'plain_class', 'saved_modules']

# Tasks for which peft adds these names to modules_to_save, whether a model has them or not.
TASKS_WITH_HEADS = ('SEQ_CLS', 'TOKEN_CLS')
PEFT_HEADS = ('classifier', 'score')
# What peft's wrapper of `modules_to_save` does not take: they have no forward.
CONTAINERS = nn.ModuleDict | nn.ModuleList | nn.ParameterDict | nn.ParameterList


def check_places(model: nn.Module, config: CdraConfig) -> None:
    """Refuses blocks on what is no linear layer, and changes inside of what is trained whole.

    Raises:
        PlanError: Names the first.
        ConfigError: If `modules_to_save` names nothing that can be trained whole.
    """
    plan = config.require_plan()
    optional = PEFT_HEADS if config.task_type in TASKS_WITH_HEADS else ()
    saved_modules(model, config.modules_to_save or (), optional)
    competing = _competing(model)
    for block in plan.blocks:
        target = resolve(model, block.name)
        module = model.get_submodule(target.module)
        linear = isinstance(module, nn.Linear | nn.MultiheadAttention)
        if not linear and target.path not in competing:
            shape = tuple(module.get_parameter(target.parameter).shape)
            raise PlanError(
                f'{block.name} {shape} is of a {plain_class(module).__name__}, which is no linear '
                'layer: a block changes a matrix [O, I] that tokens are multiplied by; leave it '
                'out of the plan'
            )
    for name in _names(plan):
        inside = _saved(name, config.modules_to_save or ())
        if inside:
            raise PlanError(
                f'{name} lies in {inside}, which modules_to_save trains whole: take it out of the '
                'plan, or out of modules_to_save'
            )


def saved_modules(
    model: nn.Module, modules_to_save: Sequence[str], optional: Collection[str] = ()
) -> list[nn.Module]:
    """What peft takes `modules_to_save` to mean: all modules whose path ends with an entry.

    Args:
        model: The model.
        modules_to_save: The entries.
        optional: Those that may mean none.

    Raises:
        ConfigError: If an entry means none, or one that peft cannot train whole.
    """
    found: list[nn.Module] = []
    for entry in modules_to_save:
        modules = [(p, m) for p, m in model.named_modules() if entry and p.endswith(entry)]
        if not modules and entry not in optional:
            raise ConfigError(
                f'modules_to_save: {plain_class(model).__name__} has no module that ends with '
                f'{entry!r}: name its head as the model does, or take it out of the config'
            )
        for path, module in modules:
            if isinstance(module, CONTAINERS):
                raise ConfigError(
                    f'modules_to_save: {path} is a {type(module).__name__}, which has no forward '
                    'that could be another one: name the modules in it'
                )
        found += [module for _, module in modules]
    return found


def check_base_of(model: nn.Module, config: CdraConfig, known: Collection[str] = ()) -> None:
    """Refuses other base weights than those of the config, and notes them where it has none.

    What competes counts, without what `modules_to_save` brings along: a head is another one in
    every new model. Of a model without transformer blocks it is what the plan changes.

    Args:
        model: The model.
        config: The config.
        known: Fingerprints of the adapters that are on it. They were checked when they came: a
            model that was converted to half precision since has the same base.

    Raises:
        PlanError: If they differ.
    """
    state = base_state(model)
    for path, module in model.named_modules():
        if isinstance(module, CdraLayer):  # the base is what it was before adapters were merged
            owner = path.removesuffix('cdra')
            state |= {owner + name: value for name, value in module.kept.items()}
    plan = config.require_plan()
    competing = _competing(model) or {name.partition(':')[0] for name in _names(plan)}
    names = sorted(n for n in competing if not _saved(n, config.modules_to_save or ()))
    if not names or any(state[name].is_meta for name in names):
        return
    table = digests_of({name: state[name] for name in names})
    if not config.base_fingerprint:
        config.base_fingerprint = fingerprint(model, names, digests=table)
        return
    try:
        check_base(model, config.base_fingerprint, table, names)
    except PlanError as error:
        halves = {state[name].dtype for name in names} & {torch.float16, torch.bfloat16}
        if halves and config.base_fingerprint in known:
            return
        if not halves:
            raise
        here = ' and '.join(sorted(str(dtype).removeprefix('torch.') for dtype in halves))
        raise PlanError(
            f'{error}; they are in {here} here: where it was made on them in float32, load them '
            "so and convert the peft model afterwards, or set base_fingerprint='' in its config"
        ) from None


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without its adapters."""
    found: type[nn.Module] = getattr(type(module), 'base_class', type(module))
    return found


def _competing(model: nn.Module) -> set[str]:
    """Paths of the parameters that compete; none where there is no transformer block."""
    try:
        return {target.path for target in find_targets(model).values()}
    except PlanError:
        return set()


def _names(plan: Plan) -> Iterator[str]:
    yield from (block.name for block in plan.blocks)
    yield from (vector.name for vector in plan.vectors)
    yield from (matrix.name for matrix in plan.sparse)
    yield from plan.also_train


def _saved(name: str, modules_to_save: Sequence[str]) -> str:
    """The entry of `modules_to_save` that means a module around a parameter, '' if none does.

    As peft takes it: by the end of the module's path.
    """
    parts = name.partition(':')[0].split('.')
    paths = ['.'.join(parts[:end]) for end in range(1, len(parts))]
    return next((e for e in modules_to_save if any(path.endswith(e) for path in paths)), '')
