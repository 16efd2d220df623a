"""Where runs can go: GPUs, processors, or wherever a launcher puts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from cdra_mm.errors import ConfigError

from .runner import Slot

__all__ = ['find_slots', 'visible_gpus']


def find_slots(devices: Sequence[str] | None, jobs: int, *, launched: bool = False) -> list[Slot]:
    """A slot for each run that may go on at the same time.

    Args:
        devices: Numbers of GPUs as ``CUDA_VISIBLE_DEVICES`` names them, or ``['cpu']``; None
            for all that are visible, and the CPU where there is none.
        jobs: Runs at a time on each.
        launched: Whether a launcher chooses the device.

    Raises:
        ConfigError: If there is no such device, or no run could start.
    """
    if jobs < 1:
        raise ConfigError(f'--jobs {jobs}: expected at least 1')
    if launched:
        if devices:
            raise ConfigError('--devices and --launcher do not go together: the launcher chooses')
        return [Slot(f'launcher {i}' if jobs > 1 else 'the launcher', {}) for i in range(jobs)]
    visible = visible_gpus()
    chosen = list(dict.fromkeys(devices or visible or ['cpu']))
    if chosen == ['cpu']:
        # More threads each would only wait for one another.
        threads = {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')} if jobs > 1 else {}
        environment = {'CUDA_VISIBLE_DEVICES': '', **threads}
        return [Slot(f'cpu {i}' if jobs > 1 else 'cpu', environment) for i in range(jobs)]
    for device in chosen:
        if device not in visible:
            there = f'GPUs {", ".join(visible)}' if visible else 'no GPU'
            raise ConfigError(f'--devices {device}: PyTorch sees {there} here')
    # One on each device before a second on any.
    return [
        Slot(f'gpu {device}', {'CUDA_VISIBLE_DEVICES': device})
        for _ in range(jobs)
        for device in chosen
    ]


def visible_gpus() -> list[str]:
    """GPUs as ``CUDA_VISIBLE_DEVICES`` names them, in the order of PyTorch's indices."""
    count = torch.cuda.device_count()
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = named.split(',') if named else [str(i) for i in range(count)]
    return [name.strip() for name in names[:count]]
