"""A plan that was made elsewhere: in a file, or by the first process of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import broadcast

from cdra_mm.core import Plan
from cdra_mm.errors import ConfigError

__all__ = ['read_plan', 'same_everywhere']


def read_plan(path: str | Path) -> Plan:
    """Reads a plan file.

    Raises:
        ConfigError: If it cannot be read.
        PlanError: If it is no plan.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'plan={str(path)!r} cannot be read: {error}') from None
    return Plan.from_json(text)


def same_everywhere(plan: Plan | None) -> Plan | None:
    """The plan of rank 0: rounding may differ between processes."""
    text = plan.to_json().encode() if plan is not None else b''
    size = torch.tensor(len(text))
    broadcast(size)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if len(text) == int(size) and text:
        buffer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    broadcast(buffer)
    return Plan.from_json(bytes(buffer.tolist()).decode()) if int(size) else None
