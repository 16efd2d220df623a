"""From which checkpoint a run goes on, and whether that one can be gone on from."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from cdra_mm.command_line import one_line
from cdra_mm.errors import CheckpointError, DataError
from cdra_mm.last_checkpoint import POINTER, pointed_at, pointer_text

from ..backbone import PREFIX
from ..host.runner_parts import is_resumed, loaded_from, resume_from, start_anew
from ..inputs import check_weight_file
from ..rebuild import plain_model
from .keys import KEYS
from .kinds_of_values import damaged
from .own_files import OwnFiles
from .record import Record
from .saving import clear_folders

__all__ = [
    'check_parts',
    'check_weights',
    'check_whole',
    'choose_checkpoint',
    'latest_checkpoint',
    'with_resume_advice',
]

# Seconds by which the clock of a file system may be behind.
CLOCK = 2.0
# What a checkpoint must hold, and what writes one without it.
PARTS = {
    'state_dict': 'it holds weights only',
    'meta': 'it holds weights only',
    'message_hub': 'it holds weights only',
    'optimizer': 'as best_..., published and CheckpointHook(save_optimizer=False) checkpoints are',
    'param_schedulers': 'as CheckpointHook(save_param_scheduler=False) writes it',
}


def choose_checkpoint(runner: Runner) -> None:
    """Settles what a run resumes before mmengine looks for it; clears what a kill has left.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    own = OwnFiles.of_runner(runner)
    clear_folders(own)
    if not is_resumed(runner):
        return
    path = loaded_from(runner)
    if path is None:
        found = latest_checkpoint(own, runner.logger.warning)
        if found is None:
            runner.logger.warning(
                f'no checkpoint in {runner.work_dir}: starting from the beginning'
            )
            start_anew(runner)
            return
        path = str(found)
        resume_from(runner, path)
    check_whole(path)


def latest_checkpoint(own: OwnFiles, say: Callable[[str], object]) -> Path | None:
    """The checkpoint to go on from: the one pointed to, or else the newest whole one.

    In a work directory that was copied the pointer names the original: the copy goes on from its
    own files, and from the original's only where it has none.

    Args:
        own: Where the run keeps its checkpoints.
        say: Gets a line where it is not exactly the one pointed to.

    Returns:
        Its path, or None where there is no checkpoint at all.

    Raises:
        CheckpointError: If there are checkpoints and none of them is whole.
    """
    work_dir = own.folders[0]
    text, named = pointer_text(work_dir), pointed_at(work_dir, own.folders)
    fault = f'{work_dir / POINTER} is missing or empty'
    if named is not None:
        fault = _fault(named)
        if not fault and own.holds(named):
            if Path(text).is_file() and not Path(text).samefile(named):
                say(f'{POINTER} names {text}, outside of this run: going on from its own {named}')
            return named
    found = own.numbered()
    if named is None and not found:
        return None
    if named is not None and not fault:
        if not found:
            say(f'{work_dir} has no checkpoint of its own: going on from {named}, which {POINTER} '
                'names')  # fmt: skip
            return named
        fault = f'{POINTER} names {text}, outside of this run'
    for path in found:
        if not _fault(path):
            say(f'{fault}; going on from the newest whole checkpoint, {path}')
            return path
    others = ', '.join(path.name for path in found if path != named)
    raise CheckpointError(
        f'{fault}; no other checkpoint in {work_dir} is whole' + (f' ({others})' if others else '')
        + ': start again in another work directory'
    )  # fmt: skip


def check_whole(path: str | Path, where: str = '--resume') -> None:
    """Checks every byte of a checkpoint file against its checksums.

    Args:
        path: Path or address; addresses pass.
        where: What names it, for the message.

    Raises:
        CheckpointError: If it is missing or damaged; names the whole ones beside it.
    """
    fault = '' if '://' in str(path) else _fault(Path(path), where)
    if fault:
        beside = OwnFiles((Path(path).parent,)).numbered()
        good = [found.name for found in beside if not _fault(found)]
        raise CheckpointError(fault + (f'; whole are {", ".join(good)} beside it' if good else ''))


def _fault(path: Path, where: str = POINTER) -> str:
    """What is wrong with a checkpoint file; '' for nothing."""
    try:
        check_weight_file(str(path), where)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                return f'weight file {path} ({where}) is damaged (checksum of {damaged})'
    except CheckpointError as error:
        return str(error)
    except (OSError, zipfile.BadZipFile) as error:
        return f'weight file {path} ({where}) is damaged ({error})'
    return ''


def check_parts(checkpoint: Mapping[str, Any], runner: Runner) -> None:
    """Refuses a checkpoint that lacks a part of the run; mmengine goes on without it.

    Raises:
        CheckpointError: Names the part.
    """
    for part, why in PARTS.items():
        if part == 'param_schedulers' and not runner.param_schedulers:
            continue
        if part not in checkpoint:
            raise CheckpointError(
                f'cannot resume: the checkpoint has no {part}, {why}. To start from its weights, '
                'use load_from without resume'
            )
    for key in ('epoch', 'iter'):
        if not isinstance(checkpoint['meta'].get(key), int):
            raise CheckpointError(f'the checkpoint is damaged: its meta has no {key}; use another')
    averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    if averages != ('ema_state_dict' in checkpoint):
        had, has = ('without', 'has') if averages else ('with', 'has no')
        raise CheckpointError(
            f'cannot resume: the checkpoint was written {had} EMAHook, and the config {has} one, '
            'so that its weights would be taken for others; use the config it was trained with'
        )


def check_weights(checkpoint: Mapping[str, Any], runner: Runner, record: Record | None) -> None:
    """Refuses weights that do not fit the run; mmengine leaves them out.

    Raises:
        CheckpointError: Names the first.
    """
    expected = plain_model(runner).state_dict()
    left_out = {PREFIX + name for name in (*record.left_out, *KEYS)} if record else set()
    for part, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
        if part in checkpoint:
            given: Mapping[str, Tensor] = checkpoint[part]
            for name, tensor in expected.items():
                held = given.get(prefix + name)
                if held is None and name not in left_out:
                    raise damaged(f'its {part} lacks {name}')
                if held is not None and held.shape != tensor.shape:
                    raise damaged(
                        f'{name} of its {part} is {list(held.shape)}, expected {list(tensor.shape)}'
                    )


@contextmanager
def with_resume_advice(work_dir: str | Path) -> Iterator[None]:
    """What ends the run inside the block says from where it can go on.

    Raises:
        KeyboardInterrupt: With that as its message.
        DataError: With that at its end, where the run has written a checkpoint before a file of
            its data could not be used.
    """
    begin = time.time()
    try:
        yield
    except DataError as error:
        found = pointed_at(work_dir)
        # An older one belongs to another run, or is what this one went on from.
        if found is None or not found.is_file() or found.stat().st_mtime < begin - CLOCK:
            raise
        raise DataError(
            f'{one_line(error)}; the last checkpoint is {found}; then go on with the same command '
            'and --resume'
        ) from error
    except KeyboardInterrupt:
        found = pointed_at(work_dir)
        if found is None or not found.is_file():
            raise KeyboardInterrupt(
                'no checkpoint was written yet; the same command starts from the beginning'
            ) from None
        raise KeyboardInterrupt(
            f'the last checkpoint is {found}; go on with the same command and --resume'
        ) from None
