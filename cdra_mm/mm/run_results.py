"""What a run leaves at its end beside checkpoints: its adapter file, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner
from torch import nn

from cdra_mm.core import save_adapter
from cdra_mm.last_checkpoint import pointed_at

from .backbone import find_backbone
from .checkpoints.record import Record, relied_on
from .rebuild import plain_model
from .summary import parameter_summary, plain_values

__all__ = ['ADAPTER_FILE', 'write_results']

ADAPTER_FILE = 'cdra_adapter.safetensors'


def write_results(
    runner: Runner,
    record: Record,
    trained: Mapping[int, nn.Parameter],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the adapter file of a run that ends, where it has a plan.

    Returns:
        For the summary: parameters, sizes in bytes and the metrics.
    """
    backbone = find_backbone(plain_model(runner))
    sizes = {}
    last = pointed_at(runner.work_dir)
    if last is not None and last.is_file():
        sizes['checkpoint_bytes'] = last.stat().st_size
    if record.plan is not None:
        path = Path(runner.work_dir) / ADAPTER_FILE
        given = plain_values(metrics)
        save_adapter(backbone, path, metrics=given, **relied_on(backbone, record))
        sizes['adapter_bytes'] = path.stat().st_size
    return {**parameter_summary(backbone, trained), **sizes, 'metrics': metrics}
