"""What a benchmark leaves: tables, the machine it ran on, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cdra_mm.columns import aligned
from cdra_mm.errors import ConfigError
from cdra_mm.storage import write_text

from .start.table import render_starts

__all__ = ['Results', 'machine', 'machine_line', 'render']

PACKAGES = (
    'torch',
    'timm',
    'peft',
    'opacus',
    'backpack-for-pytorch',
    'mmpretrain',
    'onedl-mmpretrain',
)
FORMAT = 1
MIB = 2**20


class Results:
    """Records of a run; the file is written anew after each, so that none is lost.

    Args:
        path: JSON file, None for none.
        settings: Settings of the run, plain values.
        device: ``'cpu'`` or ``'cuda'``.
    """

    def __init__(self, path: str | None, settings: dict[str, Any], device: str) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            'format': FORMAT,
            'machine': machine(device),
            'settings': settings,
            'complete': False,
            'results': [],
        }
        self._check()

    def _check(self) -> None:
        """Finds out before the work that the file cannot be written; keeps what it holds."""
        if self.path is None:
            return
        path = Path(self.path)
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
        if existing.is_dir() == (existing == path) or not os.access(existing, os.W_OK):
            raise ConfigError(f'--json {path}: expected a file that can be written')
        if existing != path:
            self.write()

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record and writes the file."""
        self.content['results'].append(record)
        self.write()

    def finish(self) -> None:
        """Notes that nothing is missing."""
        self.content['complete'] = True
        self.write()

    def write(self) -> None:
        """Writes the file."""
        if self.path is not None:
            write_text(self.path, json.dumps(self.content, indent=1) + '\n')


def machine(device: str) -> dict[str, Any]:
    """Hardware, threads and versions."""
    versions = {package: _version(package) for package in PACKAGES}
    versions['torch'] = torch.__version__  # names the CUDA build, too
    return {
        'cpu': _cpu_name(),
        'cores': os.cpu_count(),
        'gpu': torch.cuda.get_device_name() if device == 'cuda' else None,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'versions': versions,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_line(found: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ', '.join(f'{k} {v}' for k, v in found['versions'].items() if v)
    gpu = f'{found["gpu"]}; ' if found['gpu'] else ''
    cpu = f'{found["cpu"]}, {found["cores"]} cores, {found["threads"]} threads'
    return f'machine: {gpu}{cpu}; Python {found["python"]}, {versions}'


Column = tuple[str, Callable[[dict[str, Any]], str]]


def _ratio(key: str) -> Callable[[dict[str, Any]], str]:
    def show(entry: dict[str, Any]) -> str:
        if entry.get(key) is None:
            return ''
        low, high = entry.get(f'{key}_quartiles', (None, None))
        spread = '' if low is None else f' ({low:.2f} to {high:.2f})'
        return f'{entry[key]:.3f}{spread}'

    return show


def _number(key: str, form: str, factor: float = 1) -> Callable[[dict[str, Any]], str]:
    def show(entry: dict[str, Any]) -> str:
        return '' if entry.get(key) is None else format(entry[key] * factor, form)

    return show


TIME: Column = ('ms', _number('seconds', ',.1f', 1000))
EXTRA: Column = ('peak above rest, MiB', _number('peak_bytes_above_rest', ',.0f', 1 / MIB))
COLUMNS: dict[str, list[Column]] = {
    'scores': [
        TIME,
        ('x backward (quartiles)', _ratio('ratio_vs_backward')),
        EXTRA,
        ('of it scratch', _number('scratch_bytes', ',.0f', 1 / MIB)),
        ('covers', _number('covers', '.1%')),
        ('largest error', _number('max_relative_error', '.0e')),
    ],
    'step': [
        TIME,
        ('x frozen limit (quartiles)', _ratio('ratio_vs_frozen_limit')),
        ('x peft LoRA (quartiles)', _ratio('ratio_vs_peft_lora')),
        ('trainable', _number('trainable', ',')),
        ('saved, MiB', _number('saved_bytes', ',.1f', 1 / MIB)),
        ('added to saved, x LoRA', _ratio('adapter_saved_bytes_ratio_vs_peft_lora')),
        ('copies kept, MiB', _number('kept_bytes', ',.1f', 1 / MIB)),
        EXTRA,
    ],
    'launches': [
        ('launches', _number('launches', ',')),
        ('forward', _number('forward', ',')),
        ('backward', _number('backward', ',')),
        ('x frozen limit', _ratio('ratio_vs_frozen_limit')),
        ('x full', _ratio('ratio_vs_full')),
    ],
    'memory': [
        ('weights, MiB', _number('weight_bytes', ',.0f', 1 / MIB)),
        ('AdamW', _number('optimizer_bytes', ',.0f', 1 / MIB)),
        ('step at its peak', _number('step_bytes', ',.0f', 1 / MIB)),
        ('total', _number('total_bytes', ',.0f', 1 / MIB)),
    ],
    'bases': [
        TIME,
        ('x fp32 (quartiles)', _ratio('ratio_vs_fp32')),
        ('weights, MiB', _number('weight_bytes', ',.1f', 1 / MIB)),
        ('copies kept', _number('kept_bytes', ',.1f', 1 / MIB)),
        ('AdamW', _number('optimizer_bytes', ',.1f', 1 / MIB)),
        EXTRA,
        ('total', _number('total_bytes', ',.1f', 1 / MIB)),
    ],
    'strategies': [TIME, ('x frozen (quartiles)', _ratio('ratio_vs_frozen'))],
    'inference': [TIME, ('x base (quartiles)', _ratio('ratio_vs_base'))],
    'planning': [('s', _number('seconds', ',.2f')), EXTRA],
    'growth': [
        ('scores x backward', _ratio('scores_ratio_vs_backward')),
        ('step x frozen limit', _ratio('step_ratio_vs_frozen_limit')),
        ('step x peft LoRA', _ratio('step_ratio_vs_peft_lora')),
        ('added to saved, x LoRA', _ratio('adapter_saved_bytes_ratio_vs_peft_lora')),
        ('trainable', _number('trainable', ',')),
    ],
}


def render(records: Sequence[dict[str, Any]]) -> str:
    """A table of records of one benchmark; one table for the points of `growth`."""
    first = records[0]
    if first['benchmark'] == 'start':
        return render_starts(first)
    columns = COLUMNS[first['benchmark']]
    if first['benchmark'] == 'growth':
        rows = {f'{r["axis"]} {r["value"]}': r for r in records}
        title = f'growth: around {_setting(first)}'
    else:
        rows = {name: entry for r in records for name, entry in r['candidates'].items()}
        title = f'{first["benchmark"]}: {_setting(first)}'
    shown = [(t, f) for t, f in columns if any(f(entry) for entry in rows.values())]
    cells = [[name, *(f(entry) for _, f in shown)] for name, entry in rows.items()]
    lines = [title, aligned(['', *(t for t, _ in shown)], cells) if rows else '(nothing measured)']
    remarks = {name: e['remark'] for name, e in rows.items() if e.get('remark')}
    lines += [f'  {name}: {text}' for name, text in remarks.items()]
    for record in records:
        lines += [f'  skipped {name}: {why}' for name, why in record['skipped'].items()]
    return '\n'.join(lines)


def _setting(record: dict[str, Any]) -> str:
    if 'entries' in record:
        sizes = ''
        if 'score_bytes' in record:
            scores, largest = (record[k] / MIB for k in ('score_bytes', 'largest_tensor_bytes'))
            sizes = f', scores {scores:,.0f} MiB, the largest tensor {largest:,.0f} MiB'
        return f'{record["entries"]} entries, {record["device"]}{sizes}'
    return (
        f'{record["model"]}, {record["image_size"]} px, batch {record["batch"]}, '
        f'{record["dtype"]}, {record["device"]}, median of {record["repeats"]} rounds'
    )
