"""``summary.json``: what a run trained, what it cost and what it gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cdra_mm.core import count_parameters, write_text

__all__ = ['SUMMARY', 'parameter_summary', 'update_summary']

SUMMARY = 'summary.json'


def parameter_summary(backbone: nn.Module, trained: Mapping[int, nn.Parameter]) -> dict[str, Any]:
    """Trained parameters of a model: backbone, rest ("head"), percent of the backbone.

    Args:
        backbone: The backbone.
        trained: What the optimizer trains, by id (see `trained_parameters`).
    """
    _, total = count_parameters(backbone)
    inside = {id(p) for p in backbone.parameters()}
    trainable = sum(p.numel() for key, p in trained.items() if key in inside)
    head = sum(p.numel() for key, p in trained.items() if key not in inside)
    return {
        'trainable_backbone': trainable,
        'trainable_head': head,
        'backbone_parameters': total,
        'percent_of_backbone': 100 * trainable / total,
    }


def update_summary(work_dir: str | Path, entries: Mapping[str, Any]) -> None:
    """Writes entries into the summary of a work directory, keeping the others."""
    path = Path(work_dir) / SUMMARY
    try:
        kept = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        kept = {}
    write_text(path, json.dumps({**kept, **_plain(entries)}, indent=2) + '\n')


def _plain(value: Any) -> Any:
    """Numbers of any array type as Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, 'item') else value
