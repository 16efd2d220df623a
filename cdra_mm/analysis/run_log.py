"""What a run logged, joined over its resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cdra_mm.errors import CheckpointError
from cdra_mm.storage.strict_json import strict_json

__all__ = ['join_logs', 'read_log']

LAST_STEP = 1 << 53  # what a picture can place


def read_log(folder: str | Path) -> tuple[list[dict[str, Any]], Config | None]:
    """The log and the config of a work directory.

    mmengine makes one folder, named by the time, for each start of a run.

    Returns:
        The entries of `join_logs`, and the newest config or None.

    Raises:
        CheckpointError: If the config cannot be read.
    """
    folder = Path(folder)
    logs = [list(_entries(path)) for path in sorted(folder.glob('*/vis_data/scalars.json'))]
    configs = [*sorted(folder.glob('*.py')), *sorted(folder.glob('*/vis_data/config.py'))]
    if not configs:
        return join_logs(logs), None
    newest = max(configs, key=lambda path: path.stat().st_mtime)
    try:
        return join_logs(logs), Config.fromfile(newest)
    except Exception as error:  # a config is a program
        raise CheckpointError(f'{newest} cannot be read as a config: {error}') from None


def join_logs(logs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One log of several starts.

    A start that goes on from an earlier checkpoint repeats steps: what was logged for
    them before does not count. A start without training (a test) changes nothing.

    Returns:
        Entries by rising ``step``.

    Example:
        >>> first = [{'loss': 3, 'step': 1}, {'loss': 2, 'step': 2}]
        >>> join_logs([first, [{'loss': 1, 'step': 2}]])
        [{'loss': 3, 'step': 1}, {'loss': 1, 'step': 2}]
    """
    joined: list[dict[str, Any]] = []
    for log in logs:
        trained = [entry['step'] for entry in log if 'lr' in entry or 'loss' in entry]
        if trained:
            joined = [entry for entry in joined if entry['step'] < min(trained)]
            joined += log
    return joined


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                entry = strict_json(line, finite=False)
            except ValueError:  # the last line of a run that was killed
                continue
            step = entry.get('step') if isinstance(entry, dict) else None
            if type(step) is int and 0 <= step < LAST_STEP:
                yield entry
