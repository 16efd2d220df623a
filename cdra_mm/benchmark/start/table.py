"""The start of a run as text: a row for each stage, a column for each way to start it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdra_mm.columns import aligned

__all__ = ['render_starts']

CLOCKS = ('seconds', 'cpu_seconds')


def render_starts(record: Mapping[str, Any]) -> str:
    """A record of `compare_starts` as a table; cells are seconds and CPU seconds."""
    ways = record['candidates']
    title = f'start: {record["run"]}, median of {record["repeats"]} rounds'
    if not ways:
        return title
    stages = list(dict.fromkeys(name for entry in ways.values() for name in entry['stages']))
    rows = [[name, *(_pair(way['stages'].get(name)) for way in ways.values())] for name in stages]
    rows.append(['to the first iteration', *map(_pair, ways.values())])
    added = [_pair({c: way[f'added_{c}'] for c in CLOCKS}) for way in ways.values()]
    rows.append(["added, without scoring and the head's fit", *added])
    rows.append(['steps over as many images', *(_pair(way['steps']) for way in ways.values())])
    lines = [title, f'  {record["reduced"]}', aligned(('seconds / CPU', *ways), rows)]
    for name, way in ways.items():
        if 'scoring_seconds_ratio_vs_steps' in way:
            wall, cpu = (way[f'scoring_{clock}_ratio_vs_steps'] for clock in CLOCKS)
            low, high = way['scoring_cpu_seconds_ratio_vs_steps_quartiles']
            lines.append(
                f"  {name}: scoring takes {wall:.3f} of OpenMMLab's steps over as many images, "
                f'{cpu:.3f} of their CPU time ({low:.2f} to {high:.2f})'
            )
    return '\n'.join(lines)


def _pair(spent: Mapping[str, float] | None) -> str:
    return '' if spent is None else ' / '.join(f'{spent[clock]:.2f}' for clock in CLOCKS)
