"""Which files are a run's own checkpoints: the only ones it goes on from unasked, or removes.

A checkpoint carries mmengine's message hub, and that names files by their paths: the best
checkpoint so far, the last one, the numbers of those to keep. mmengine removes what stands there
when a better or a newer one is written. After a work directory was copied these are the files of
the original, and in a file from elsewhere they can be anything. So on resume every name is looked
for in the run's own folder, and what is not there is dropped.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from cdra_mm.errors import CheckpointError

from ..host.checkpoint_loaders import hub_entries
from ..host.runner_parts import loaded_from
from .index import is_of_a_run, is_run_checkpoint, read_index

__all__ = ['OwnFiles', 'claim_own_files', 'remove_own']

_TEMPLATES = ('iter_{}.pth', 'epoch_{}.pth')  # mmengine's, without filename_tmpl
_BEST = 'best_'  # how the names of best checkpoints begin


@dataclass(frozen=True)
class OwnFiles:
    """Where a run keeps its checkpoints and how it names them.

    Attributes:
        folders: Where they lie; the work directory first.
        templates: Their names with a place for the number; the run's own first.
    """

    folders: tuple[Path, ...]
    templates: tuple[str, ...] = _TEMPLATES

    @classmethod
    def of_runner(cls, runner: Runner) -> OwnFiles:
        """Those of a run before training."""
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        return cls._of(runner.work_dir, [(hook.out_dir, hook.filename_tmpl) for hook in hooks])

    @classmethod
    def of_config(cls, cfg: Config) -> OwnFiles:
        """Those of the run of a config, which has its work directory."""
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        return cls._of(cfg.work_dir, [(hook.get('out_dir'), hook.get('filename_tmpl'))])

    @classmethod
    def _of(cls, work_dir: str, hooks: list[tuple[Any, str | None]]) -> OwnFiles:
        folders, templates = [Path(work_dir)], []
        for out_dir, template in hooks:
            if out_dir is not None and str(out_dir) != work_dir and '://' not in str(out_dir):
                # As `CheckpointHook.before_train` joins them.
                folders.append(Path(out_dir) / Path(work_dir).name)
            if template:
                templates.append(template)
        return cls(tuple(dict.fromkeys(folders)), tuple(dict.fromkeys([*templates, *_TEMPLATES])))

    def holds(self, path: Path) -> bool:
        """Whether a file lies directly in one of the folders."""
        parent = path.parent.resolve()
        return any(folder.resolve() == parent for folder in self.folders)

    def numbered(self) -> list[Path]:
        """The checkpoints that can be resumed, those of the run's own name first, newest first."""
        found: list[tuple[int, int, Path]] = []
        for folder in self.folders:
            for path in folder.glob('*'):
                place = self._place(path.name)
                if place is not None and _is_regular(path) and _may_be_of_a_run(path):
                    found.append((*place, path))
        return [path for *_, path in sorted(found, key=lambda entry: entry[:2])]

    def written(self) -> list[Path]:
        """The checkpoints that the run has written, the best ones too.

        By their names, and by holding what mmengine stores in a run's checkpoints alone: a merged
        or a published one is none of them, nor is a damaged file, of which nothing can be said.
        """
        return [
            path
            for folder in self.folders
            for path in sorted(folder.glob('*'))
            if self._is_name_of_a_run(path.name) and _is_regular(path) and is_of_a_run(path)
        ]

    def _is_name_of_a_run(self, name: str) -> bool:
        if self._place(name) is not None:
            return True
        best = name.startswith(_BEST)  # before the name of the metric and the ordinary one
        return best and any(re.search(f'_{_pattern(t).pattern}$', name) for t in self.templates)

    def _place(self, name: str) -> tuple[int, int] | None:
        """What a name is sorted by; None for none of the templates."""
        for rank, template in enumerate(self.templates):
            match = _pattern(template).fullmatch(name)
            if match:
                return rank, -int(match['number'])
        return None


def claim_own_files(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Makes the message hub of a checkpoint that is resumed name files of this run only.

    Has to run before mmengine loads the hub: each checkpoint hook takes what it says.

    Args:
        runner: A run that resumes.
        checkpoint: The checkpoint; its ``message_hub`` is changed in place.

    Raises:
        CheckpointError: If the hub, or an entry that names files, is of another type.
    """
    info, resumed_keys = _entries(checkpoint['message_hub'])
    own = OwnFiles.of_runner(runner)
    is_own = own.holds(Path(str(loaded_from(runner))))
    for key in list(info):
        value = info[key]
        if key == 'last_ckpt' or (isinstance(key, str) and key.startswith('best_ckpt')):
            if value is not None and not isinstance(value, str | os.PathLike):
                raise _damaged(key, value, 'the path of a checkpoint')
            path = _own_path(str(value), own) if value is not None and is_own else None
            if path is None:
                del info[key]
                resumed_keys.pop(key, None)
                if value is not None and key != 'last_ckpt':
                    MMLogger.get_current_instance().warning(
                        f'{value} ({key} of the checkpoint that is resumed) is no file of this '
                        'run: it stays where it is, whatever is better'
                    )
            else:
                info[key] = path
        elif key == 'keep_ckpt_ids':
            info[key] = _kept_ids(value, own) if is_own else (_kept_ids(value, own) and [])
        elif isinstance(key, str) and key.startswith('best_score'):
            if isinstance(value, str | bytes) or not hasattr(value, '__float__'):
                raise _damaged(key, value, 'a number')


def remove_own(backend: Any, path: str, folder: str, template: str) -> None:
    """Removes an outdated checkpoint; what is not a file of the run with such a name stays.

    Args:
        backend: mmengine's file backend.
        path: The file.
        folder: Where the run keeps its checkpoints.
        template: Of their names.
    """
    name = PurePath(path).name
    lies_there = str(path) == str(backend.join_path(folder, name))
    if '://' not in str(folder):
        lies_there = Path(path).parent.resolve() == Path(folder).resolve()
    if not lies_there or not (_pattern(template).fullmatch(name) or name.startswith(_BEST)):
        MMLogger.get_current_instance().warning(
            f'{path} stays: it is no checkpoint of this run in {folder}'
        )
    elif '://' in str(folder):
        if backend.isfile(path):
            backend.remove(path)
    elif _is_regular(Path(path)):
        backend.remove(path)


def _entries(hub: Any) -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
    """What a hub knows, and which of it comes back on resume."""
    if isinstance(hub, Mapping):
        parts = hub.get('runtime_info'), hub.get('resumed_keys')
    else:  # mmengine also takes the object itself
        parts = hub_entries(hub)
    if not all(isinstance(part, MutableMapping) for part in parts):
        raise CheckpointError(
            'the checkpoint is damaged: its message_hub has no runtime_info and resumed_keys; use '
            'another'
        )
    return parts  # type: ignore[return-value]


def _own_path(value: str, own: OwnFiles) -> str | None:
    """The file of that name in a folder of the run, or None."""
    name = PurePath(value).name
    if own._place(name) is None and not name.startswith(_BEST):
        return None
    for folder in reversed(own.folders):  # out_dir before the work directory
        if _is_regular(folder / name):
            return str(folder / name)
    return None


def _kept_ids(value: Any, own: OwnFiles) -> list[int]:
    """The numbers whose checkpoints are there."""
    if not isinstance(value, list | tuple) or not all(type(i) is int and i >= 0 for i in value):
        raise _damaged('keep_ckpt_ids', value, 'a list of numbers')
    return [
        number
        for number in value
        if any(_is_regular(f / t.format(number)) for f in own.folders for t in own.templates)
    ]


def _damaged(key: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f'the checkpoint is damaged: {key} of its message_hub is {str(value)[:80]!r}, expected '
        f'{expected}; use another'
    )


def _pattern(template: str) -> re.Pattern[str]:
    head, *tail = re.split(r'\{[^{}]*\}', template, maxsplit=1)
    return re.compile(re.escape(head) + r'(?P<number>\d+)' + re.escape(''.join(tail)))


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _may_be_of_a_run(path: Path) -> bool:
    """False for a whole file without the parts of a run."""
    index = read_index(path)
    return index is None or is_run_checkpoint(index)  # a damaged one is told by whoever wants it
