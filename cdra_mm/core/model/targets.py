"""Which weights compete for selection, and how they are named (design D3).

A *target* is a matrix or a vector of a transformer block. It is named by its
parameter; a fused matrix (query, key and value in one) is seen as its parts:

    blocks.0.attn.qkv.weight [3E, E]
        ->  blocks.0.attn.qkv.weight:q   rows 0 .. E-1
            blocks.0.attn.qkv.weight:k   rows E .. 2E-1
            blocks.0.attn.qkv.weight:v   rows 2E .. 3E-1

What there is to know about a backbone family is an entry of `families`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from cdra_mm.errors import PlanError

from .families import FAMILIES, GATED, QKV, families_of
from .row_int8 import is_int8
from .sharded import is_sharded
from .transformer_layers import attention_width, find_layers, layer_width

__all__ = [
    'Target',
    'find_targets',
    'parameter_of',
    'resolve',
    'view_of',
]


@dataclass(frozen=True)
class Target:
    """One competing matrix or vector.

    Attributes:
        name: ``<parameter path>`` or ``<parameter path>:<part>``.
        module: Path of the module that owns the parameter.
        parameter: Name of the parameter in that module.
        part: Part of a fused matrix (``'q'`` ...), ``''`` for the whole.
        start: First row of the part in the parameter.
        stop: One past its last row.
        shape: Shape of the target, ``(O, I)`` or ``(length,)``.
        role: What the target is in its block, for tables: ``q k v proj fc1 fc2
            w1 w2 w3 bias norm scale``, otherwise the path inside the block.
    """

    name: str
    module: str
    parameter: str
    part: str
    start: int
    stop: int
    shape: tuple[int, ...]
    role: str

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def suffix(self) -> str:
        """The name inside the module, ``<parameter>[:<part>]``."""
        return f'{self.parameter}:{self.part}' if self.part else self.parameter

    @property
    def path(self) -> str:
        """Path of the parameter."""
        return _join(self.module, self.parameter)


def _join(*parts: str) -> str:
    return '.'.join(p for p in parts if p)


def parameter_of(model: nn.Module, target: Target) -> nn.Parameter:
    """The base parameter of a target, also where the module is adapted."""
    return cast(nn.Parameter, model.get_submodule(target.module)._parameters[target.parameter])


def view_of(target: Target, tensor: Tensor) -> Tensor:
    """The target's rows of a tensor shaped like its parameter (a view)."""
    return tensor[target.start : target.stop]


def find_targets(model: nn.Module) -> dict[str, Target]:
    """Every matrix and vector of the transformer blocks, in module order.

    Matrices are the weights of the linear layers and of
    ``nn.MultiheadAttention``; vectors are the biases and the 1-D weights of
    norms and layer scales, and those that `families` names. Patch and position
    embeddings, tokens, relative position tables and networks, norms outside the
    blocks and heads do not compete. A parameter that several modules share (a tied weight)
    is one target, under its first name; so is a module that is reached by several paths.

    Raises:
        PlanError: If the model holds no transformer block, or quantised weights or parts of
            weights (FSDP) in one.
    """
    found: dict[str, Target] = {}
    seen: set[int] = set()
    for block in find_layers(model):
        for path, module in _modules_of(model, block):
            for name in _competing_parameters(module):
                if id(module._parameters[name]) in seen:
                    continue
                seen.add(id(module._parameters[name]))
                _refuse_foreign(module, path, name)
                for target in _views(model, path, name, block):
                    found.setdefault(target.name, target)
    if not found:
        raise PlanError(
            f'no adaptable weight in {type(model).__name__}: expected transformer blocks, that is '
            'members of a ModuleList or Sequential that hold an attention (a fused qkv, separate '
            'q, k, v linear layers or nn.MultiheadAttention); describe a new family in '
            'cdra_mm/core/model/families.py'
        )
    return found


def resolve(model: nn.Module, name: str) -> Target:
    """The target that a name means in this model.

    Args:
        model: The model the name is relative to.
        name: ``<parameter path>`` or ``<parameter path>:<part>``; it need not
            lie in a transformer block.

    Raises:
        PlanError: If there is no such parameter or part, or it is quantised or a part of a weight
            (FSDP).
    """
    path, _, part = name.partition(':')
    module_path, _, parameter = path.rpartition('.')
    try:
        module = model.get_submodule(module_path)
    except AttributeError:
        module = None
    if module is None or module._parameters.get(parameter) is None:
        raise PlanError(
            f'{type(model).__name__} has no parameter {path!r}: the plan or the list of targets '
            'was made for another architecture'
        )
    weight = cast(nn.Parameter, module._parameters[parameter])
    _refuse_foreign(module, module_path, parameter)
    if not part:
        return _whole(module_path, parameter, weight, _role(model, module_path, parameter, ''))
    # A fused layer may stand alone, its owner outside the model.
    known = (parts for family in FAMILIES for parts in family.fused.values())
    alone = next((parts for parts in known if part in parts), ())
    parts = _parts_of(model, module_path, parameter) or alone
    if part not in parts or weight.dim() != 2 or weight.shape[0] % len(parts):
        raise PlanError(f'{path!r} of shape {tuple(weight.shape)} has no part {part!r}')
    return _part(module_path, parameter, weight, part, parts)


def _modules_of(model: nn.Module, block: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block, without those that its families exclude."""
    excluded: set[nn.Module] = set()
    for path, module in model.get_submodule(block).named_modules(prefix=block):
        if module in excluded:
            continue
        yield path, module
        for family in families_of(module, having='excluded'):
            for name in family.excluded:
                excluded.update(module.get_submodule(name).modules())


def _competing_parameters(module: nn.Module) -> Iterator[str]:
    if getattr(module, 'is_adapter', False):
        return
    # Of other modules a bare parameter competes only if the table says so: it is used by code
    # that we cannot see.
    families = tuple(families_of(module)) if module._parameters else ()
    vectors = {name for family in families for name in family.vectors}
    matrices = {name for family in families for name in family.fused}
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if parameter.dim() == 1:
            competes = isinstance(module, nn.Linear | nn.LayerNorm) or name in vectors
            competes = competes or _is_scale(module, name)
        else:
            competes = isinstance(module, nn.Linear) or name in matrices
        if competes and parameter.dim() <= 2:
            yield name


def _refuse_foreign(module: nn.Module, path: str, name: str) -> None:
    """A quantised weight gets no gradient and nothing can be merged into it; a part has no rows."""
    weight = cast(nn.Parameter, module._parameters[name])
    if is_sharded(weight):
        raise PlanError(
            f'{_join(path, name)} is spread over processes (FSDP): a part of a weight can be '
            'neither scored nor adapted; score, plan and adapt the whole model first, then shard '
            'it with cdra_mm.core.shard_base'
        )
    # A wrapper may give itself out as the type that it computes in (torchao's do).
    if weight.is_floating_point() and (type(weight.data) is Tensor or is_int8(weight)):
        return
    what = type(weight.data).__name__ if weight.is_floating_point() else str(weight.dtype)
    raise PlanError(
        f'{_join(path, name)} of a {type(module).__name__} is no plain floating-point tensor '
        f'({what}): quantised weights can neither be scored nor adapted; load the model without '
        'quantisation, and quantise it after merging'
    )


def _is_scale(module: nn.Module, name: str) -> bool:
    """Whether the parameter is a layer scale: the one vector of a leaf module."""
    own = [p for p in module._parameters.values() if p is not None]
    is_leaf = next(module.children(), None) is None or list(module._modules) == ['cdra']
    known = nn.Linear | nn.LayerNorm | nn.modules.batchnorm._BatchNorm | nn.GroupNorm
    return is_leaf and len(own) == 1 and own[0].dim() == 1 and not isinstance(module, known)


def _views(model: nn.Module, path: str, name: str, block: str) -> Iterator[Target]:
    weight = cast(nn.Parameter, model.get_submodule(path)._parameters[name])
    parts = _parts_of(model, path, name)
    if parts:
        for part in parts:
            yield _part(path, name, weight, part, parts)
    else:
        yield _whole(path, name, weight, _role(model, path, name, block))


def _whole(module: str, parameter: str, weight: Tensor, role: str) -> Target:
    name = _join(module, parameter)
    rows = len(weight) if weight.dim() else 1
    return Target(name, module, parameter, '', 0, rows, tuple(weight.shape), role)


def _part(module: str, parameter: str, weight: Tensor, part: str, parts: tuple[str, ...]) -> Target:
    height, width = weight.shape[0] // len(parts), weight.shape[1]
    start = parts.index(part) * height
    name = f'{_join(module, parameter)}:{part}'
    return Target(name, module, parameter, part, start, start + height, (height, width), part)


def _parts_of(model: nn.Module, module: str, parameter: str) -> tuple[str, ...]:
    path = _join(module, parameter)
    for family in FAMILIES:
        for below, parts in family.fused.items():
            owner, found = _strip_suffix(path, below)
            if found and family.owns(model.get_submodule(owner)):
                return parts
    return ()


def _strip_suffix(path: str, suffix: str) -> tuple[str, bool]:
    if path == suffix:
        return '', True
    return path.removesuffix('.' + suffix), path.endswith('.' + suffix)


def _role(model: nn.Module, path: str, parameter: str, block: str) -> str:
    module = model.get_submodule(path)
    weight = cast(nn.Parameter, module._parameters[parameter])
    if weight.dim() == 1:
        if isinstance(module, nn.LayerNorm):
            return 'norm'
        named = (family.vectors.get(parameter) for family in families_of(module))
        return next(filter(None, named), 'scale' if _is_scale(module, parameter) else 'bias')
    parent, _, attribute = path.rpartition('.')
    owner = model.get_submodule(parent)
    if attention_width(owner):
        bare = attribute.removesuffix('_proj').removeprefix('to_')
        return bare if bare in QKV else 'proj'
    if any(GATED in family.fused.values() for family in families_of(owner)):
        return 'w3'
    # Two linear layers that widen and narrow again are an FFN, however they are called.
    width = layer_width(model, block) if block else 0
    if width and weight.shape[1] == width and weight.shape[0] != width:
        return 'fc1'
    if width and weight.shape[0] == width and weight.shape[1] != width:
        return 'fc2'
    return path.removeprefix(block).removeprefix('.') or attribute
