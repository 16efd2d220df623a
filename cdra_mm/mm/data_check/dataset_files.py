"""Whether the files that a data set lists are there, found without opening one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdra_mm.data.layout import Fault

from .config_datasets import suffixes_in
from .one_sample import files_of

__all__ = ['absent_files', 'infos_of', 'is_local', 'unpaired_masks', 'folders_read_twice']

LOOKED_FOR = 200_000  # files that are looked for before a run; the check of all files has no limit


def infos_of(dataset: Any) -> list[dict[str, Any]]:
    """What a data set knows of each sample; nothing where it is of another kind."""
    if not hasattr(dataset, 'get_data_info'):
        return []
    infos = [dataset.get_data_info(n) for n in range(len(dataset))]
    return infos if all(isinstance(info, Mapping) for info in infos) else []


def is_local(dataset: Any) -> bool:
    """Whether files are read from this machine's folders.

    A data set without a pipeline makes its samples itself, whatever names it gives them.
    """
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    backends = [getattr(part, 'backend_args', None) for part in (dataset, *steps)]
    return bool(steps) and all(
        (args or {}).get('backend', 'local') in ('local', 'LocalBackend') for args in backends
    )


def absent_files(
    dataset: Any, infos: Sequence[Mapping[str, Any]], limit: int | None = LOOKED_FOR
) -> list[Fault]:
    """Listed files that are not there or empty, each with the likely cause."""
    faults: list[Fault] = []
    looked = 0
    for info in infos:
        for path in files_of(info):
            if '://' in path or (limit is not None and looked >= limit):
                continue
            looked += 1
            try:
                if os.stat(path).st_size:
                    continue
                what = 'is empty (0 bytes)'
            except (OSError, ValueError):
                what = 'does not exist' + _cause(path, info, dataset if not faults else None)
            faults.append(Fault(path, what))
    return faults


def unpaired_masks(dataset: Any, infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label maps in the data set's folder that no image has."""
    prefix = getattr(dataset, 'data_prefix', None) or {}
    folder = prefix.get('seg_map_path') if isinstance(prefix, Mapping) else None
    suffix = getattr(dataset, 'seg_map_suffix', None)
    if not folder or not suffix or getattr(dataset, 'ann_file', None) or not os.path.isdir(folder):
        return []
    known = {
        os.path.normpath(str(info['seg_map_path'])) for info in infos if 'seg_map_path' in info
    }
    found = (
        os.path.normpath(os.path.join(path, name))
        for path, _, names in os.walk(folder)
        for name in names
        if name.endswith(suffix) and not name.startswith('.')
    )
    return sorted(path for path in found if path not in known)


def folders_read_twice(infos: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Folders that are one and the same under two names: a link that leads back."""
    names = sorted({os.path.dirname(path) for info in infos for path in files_of(info)[:1]})
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        real = os.path.realpath(name)
        if real in first:
            pairs.append((name, first[real]))
        first.setdefault(real, name)
    return pairs


def _cause(path: str, info: Mapping[str, Any], dataset: Any) -> str:
    """Why a file that is listed is not there; '' where nothing is near."""
    if dataset is None:
        return ''
    listed = getattr(dataset, 'ann_file', None)
    from_list = f' (listed in {listed})' if listed else ''
    if '\ufeff' in path:
        return f'{from_list}: the list begins with a byte order mark; store it as UTF-8 without one'
    is_mask = path == info.get('seg_map_path')
    setting = 'seg_map_suffix' if is_mask else 'img_suffix'
    suffix = getattr(dataset, setting, None)
    if not isinstance(suffix, str):
        return from_list
    stem = path.removesuffix(suffix)
    if suffix and listed and os.path.isfile(stem):
        return f"{from_list}: its names have their suffix already; set {setting}='' or take it away"
    if os.path.basename(stem) == '':
        return f'{from_list}: the list has an empty line; take it away'
    folder = Path(path).parent
    if not folder.is_dir():
        return f'{from_list}, nor does its folder'
    start = os.path.basename(stem)
    # After the common start comes no letter or digit: 1_mask.png belongs to 1, 10.png does not.
    near = sorted(
        name
        for name in os.listdir(folder)
        if name.startswith(start) and name != start and not name[len(start)].isalnum()
    )
    if near:
        return f"{from_list}; there is {near[0]}: set {setting}='{near[0].removeprefix(start)}'"
    kinds = ', '.join(f'{count} {kind}' for kind, count in suffixes_in(folder).most_common(3))
    return f'{from_list}; its folder holds {kinds or "nothing"}'
