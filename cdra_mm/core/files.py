"""Adapter files: what was learnt, a few MB, with the plan that says where it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapt import adapters, apply_plan, check_fits, plan_of, planned_adapters
from .errors import CheckpointError
from .plan import Plan
from .state_keys import adapter_prefix
from .targets import parameter_of, resolve

__all__ = ['load_adapter', 'save_adapter', 'write_atomically', 'write_text']

FORMAT = 'cdra_mm.adapter'


def save_adapter(
    model: nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes everything that the plan trains to a safetensors file.

    Args:
        model: A model with a plan applied; its adapters must not be merged.
        path: The file; written under a temporary name, then renamed.
        metadata: Further text to keep, for example metrics.

    Raises:
        CheckpointError: If the model has no plan, or merged adapters.
    """
    plan = plan_of(model)
    if plan is None:
        raise CheckpointError(f'{type(model).__name__} has no adapters: apply a plan first')
    merged = [name for name, adapter in adapters(model).items() if adapter.merged]
    if merged:
        raise CheckpointError(f'{len(merged)} adapters are merged: call unmerge_adapters first')
    tensors = {key: value.detach().cpu().contiguous() for key, value in _trained(model, plan)}
    extra = {'format': FORMAT, 'plan': plan.to_json(), **(metadata or {})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=extra))


def load_adapter(model: nn.Module, path: str | Path) -> Plan:
    """Applies the plan of an adapter file to a plain model and loads its values.

    Args:
        model: The model with the base weights that the adapter was made for.
        path: A file written by `save_adapter`.

    Returns:
        The plan.

    Raises:
        CheckpointError: If the file is missing, truncated or foreign.
        PlanError: If the model or its base weights are not those of the plan.
    """
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f'{path}: no such adapter file') from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path} is truncated or no safetensors file ({error}): save the adapter again'
        ) from None
    if metadata.get('format') != FORMAT:
        raise CheckpointError(f'{path} is no adapter of cdra_mm: expected what save_adapter wrote')
    plan = Plan.from_json(metadata.get('plan', ''))
    check_fits(model, plan)
    expected = _expected_shapes(model, plan)
    given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    differ = sorted(
        key
        for key in expected.keys() | given.keys()
        if key not in given or expected.get(key) != given[key]
    )
    if differ:
        raise CheckpointError(
            f'{path} is damaged: {len(differ)} tensors do not fit its plan, the first is '
            f'{differ[0]}'
        )
    apply_plan(model, plan)
    for key, parameter in _trained(model, plan):
        parameter.data.copy_(tensors[key])
    return plan


def _trained(model: nn.Module, plan: Plan) -> list[tuple[str, Tensor]]:
    """What the plan trains: (state-dict key, parameter)."""
    found: list[tuple[str, Tensor]] = []
    for name, adapter in adapters(model).items():
        prefix = adapter_prefix(name)
        found += [(prefix + key, value) for key, value in adapter.named_parameters()]
    whole = [vector.name for vector in plan.vectors if vector.indices is None]
    for name in (*whole, *plan.also_train):
        found.append((name, parameter_of(model, resolve(model, name))))
    return found


def _expected_shapes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path, suffix, adapter in planned_adapters(model, plan):
        prefix = adapter_prefix(f'{path}.{suffix}')
        shapes |= {prefix + key: tuple(p.shape) for key, p in adapter.named_parameters()}
    whole = [vector.name for vector in plan.vectors if vector.indices is None]
    for name in (*whole, *plan.also_train):
        shapes[name] = tuple(parameter_of(model, resolve(model, name)).shape)
    return shapes


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding='utf-8'))


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Calls ``write(temporary path)``, then renames: never a half-written file.

    Raises:
        CheckpointError: If the folder or disk does not take the file.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(str(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError
        raise CheckpointError(f'{path} cannot be written ({error}): nothing was changed') from None
    finally:
        with suppress(OSError):  # its folder may be no folder
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
