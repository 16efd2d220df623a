"""The frozen matrices of a base in int8, under adapters in full precision.

    scores = estimate_scores(model, ...)      # of the base in full precision: int8 gets no gradient
    plan = make_plan(scores, ...)
    apply_plan(model, plan, keep_trainable=['head'])
    quantize_base(model)                      # from here on a frozen matrix takes a byte an entry
    ... training, save_adapter(model, path), validation ...

    restore_base(model, load_file('pretrained.safetensors'))
    merge_adapters(model)                     # W + delta, of the W that was quantised

An adapter trains on ``W_q = codes * scales`` (`model.row_int8`) and is the same change of a weight
whatever lies under it: ``W_q + delta`` in training, ``W + delta`` merged. All entries of a matrix
are quantised, those of its compact block too. The error ``W - W_q`` is no part of what was learnt,
so a merge leaves it out.

Plans, adapter files and checkpoints go by the digests of the base in full precision. So they fit
it as they fit the base in int8; what was quantised differently, or is another base, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.errors import ConfigError, PlanError

from ..model.digests import list_differences
from ..model.row_int8 import RowInt8, is_int8, quantize
from ..model.sharded import is_sharded
from ..model.targets import find_targets
from ..model.tensor_digest import digest_of
from .adapted import adapters, names_beside, plan_of, trained_whole

__all__ = [
    'BASE_DTYPES',
    'base_bytes',
    'check_base_dtype',
    'quantize_base',
    'quantized_names',
    'refuse_int8',
    'restore_base',
]

BASE_DTYPES = ('int8',)


def check_base_dtype(base_dtype: str | None) -> None:
    """Raises ConfigError unless a word says how a base can be kept (None: as it is)."""
    if base_dtype is not None and base_dtype not in BASE_DTYPES:
        raise ConfigError(
            f'base_dtype={base_dtype!r}: expected None (as it is loaded) or one of '
            f'{", ".join(BASE_DTYPES)}'
        )


def quantize_base(
    model: nn.Module,
    *,
    names: Iterable[str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> nn.Module:
    """Keeps frozen matrices of a model in int8, in place.

    A matrix that several modules share is one in int8 too. What is in int8 already stays as it is.

    Args:
        model: A model in fp32, with its plan applied; or a plain one, for inference or to load an
            adapter into.
        names: Paths of the parameters. Default: of the matrices that compete (`find_targets`)
            those that are frozen; of a plain model all.
        digests: Table of the base (`digests_of`), where it is known already.

    Returns:
        The model.

    Raises:
        PlanError: If one is no frozen fp32 matrix of finite values, adapters are merged, or the
            weights are spread over processes; the model is then unchanged.
    """
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise PlanError(
            f'{len(merged)} adapters are merged (the first is {merged[0]}): the base would be '
            'quantised with them; call unmerge_adapters first'
        )
    own = dict(model.named_parameters(remove_duplicate=False))
    if names is None:
        chosen = {target.path for target in find_targets(model).values() if len(target.shape) == 2}
        chosen -= _trained(model)
    elif isinstance(names, str):
        raise PlanError(f'names={names!r}: expected a list of the paths of parameters')
    else:
        chosen = set(names)
    made: dict[int, nn.Parameter] = {}
    for name in sorted(chosen):
        parameter = _checked(model, own, name)
        if not is_int8(parameter):
            known = (digests or {}).get(name, '').rpartition(' ')[2]
            with torch.inference_mode(False):  # adapters over it are trained later
                small = nn.Parameter(quantize(parameter, known), requires_grad=False)
            made[id(parameter)] = small
    _replace(model, made)
    return model


def restore_base(model: nn.Module, state: Mapping[str, Tensor], prefix: str = '') -> None:
    """Puts the weights that were quantised back in full precision, in place.

    Args:
        model: A model of which matrices are in int8.
        state: The base in full precision: the state dict of its file.
        prefix: Prefix of the model's names in it.

    Raises:
        PlanError: If a weight is missing there, or is not the one that was quantised; the model is
            then unchanged.
    """
    made: dict[int, nn.Parameter] = {}
    differ = []
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, RowInt8):
            continue
        given = state.get(prefix + name)
        if given is None:
            differ.append(f'{name} (missing there)')
            continue
        # A file in half precision is one that was read into fp32.
        full = given.detach().to(parameter.device, torch.float32, copy=True)
        if is_int8(full) or full.shape != parameter.shape or digest_of(full) != parameter.origin:
            differ.append(name)
        else:
            # A model that was cast meanwhile has it in the type that it computes in.
            made[id(parameter)] = nn.Parameter(full.to(parameter.dtype), requires_grad=False)
    if differ:
        raise PlanError(
            f'the base given is not the one that was quantised ({list_differences(differ)}): give '
            'the state dict of the file that the model was loaded from, with the prefix of its '
            'names'
        )
    _replace(model, made)


def quantized_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are in int8."""
    return [name for name, parameter in model.named_parameters() if is_int8(parameter)]


def base_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, adapters included."""
    return sum(parameter.nbytes for parameter in model.parameters())


def refuse_int8(model: nn.Module, consequence: str, advice: str) -> None:
    """Raises PlanError where weights of a model are in int8.

    Args:
        model: The model.
        consequence: What that rules out.
        advice: What to do.
    """
    names = quantized_names(model)
    if names:
        raise PlanError(
            f'{len(names)} weights are kept in int8 (the first is {names[0]}): {consequence}; '
            f'{advice}'
        )


def _trained(model: nn.Module) -> set[str]:
    """Names of a model's own parameters that its plan trains whole, or that are beside it."""
    plan = plan_of(model)
    if plan is None:
        return set()
    beside = names_beside(model)
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {*trained_whole(plan), *(beside & trained)}


def _checked(model: nn.Module, own: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    if name not in own:
        raise PlanError(f'{type(model).__name__} has no parameter {name!r} to keep in int8')
    parameter = own[name]
    if is_sharded(parameter):
        raise PlanError(
            f'{name} is spread over processes (FSDP): a part of a weight cannot be quantised; one '
            'of the two saves the memory'
        )
    if name in _trained(model):
        raise PlanError(
            f'{name} is trained: only frozen weights can be kept in int8; leave it out of names'
        )
    if not is_int8(parameter) and (parameter.dim() != 2 or parameter.dtype != torch.float32):
        raise PlanError(
            f'{name} is {str(parameter.dtype).removeprefix("torch.")} '
            f'{list(parameter.shape)}: only fp32 matrices can be kept in int8; load the base in '
            'fp32, or leave it as it is'
        )
    if parameter.is_meta:
        raise PlanError(f'{name} is on meta, without values: load the base before it is quantised')
    if not is_int8(parameter) and not bool(parameter.isfinite().all()):
        raise PlanError(
            f'{name} holds values that are no finite numbers, and its rows would hold nothing else '
            'in int8: load other weights, or leave it out of names'
        )
    return parameter


def _replace(model: nn.Module, made: Mapping[int, nn.Parameter]) -> None:
    """Puts other parameters in the place of some, wherever they are used."""
    for module in model.modules():
        own: dict[str, Any] = module._parameters
        for name, parameter in own.items():
            if id(parameter) in made:
                own[name] = made[id(parameter)]
