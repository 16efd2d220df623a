"""What is in a checkpoint or an exported file, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

COMPARED = ('state_dict', 'ema_state_dict', 'optimizer')  # of a checkpoint


def differing(one: Path, other: Path) -> list[str]:
    """Names of the tensors in which two checkpoints differ."""
    a, b = tensors_of(one), tensors_of(other)
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def content_of(path: Path) -> dict[str, str] | None:
    """Digests of the values in an exported file or folder; None where nothing is there.

    By their names: the order in which a file holds them can differ from one process to the next.

    Raises:
        Exception: Whatever the reader of the format says of a file that is not whole.
    """
    if path.is_dir():
        files = sorted(path.iterdir())
        return {
            f'{file.name}/{k}': v for file in files for k, v in (content_of(file) or {}).items()
        }
    if not path.exists():
        return None
    if path.suffix == '.safetensors':
        return safetensors_content(path)
    if path.suffix == '.pth':
        return tensors_of(path)
    return {'bytes': sha256(path.read_bytes()).hexdigest()}


def safetensors_content(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        values = {key: digest(file.get_tensor(key)) for key in file.keys()}
        return values | {f'metadata {k}': v for k, v in (file.metadata() or {}).items()}


def tensors_of(path: Path) -> dict[str, str]:
    """Digests of the tensors of a checkpoint: of the model, its averages and the optimizer."""
    import torch

    content = torch.load(path, map_location='cpu', weights_only=False)
    kept = {key: content[key] for key in COMPARED if key in content}
    return {name: digest(tensor) for name, tensor in tensors(kept)}


def tensors(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Every tensor in nested dicts, by its path."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from tensors(entry, f'{name}.{key}' if name else str(key))


def digest(tensor: Any) -> str:
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return f'{tensor.dtype} {tuple(tensor.shape)} {sha256(flat.numpy()).hexdigest()}'
