"""Which checkpoint of a work directory is the newest: a file of mmengine says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ['POINTER', 'pointed_at', 'pointer_text']

POINTER = 'last_checkpoint'  # mmengine's file with the path of the newest checkpoint


def pointer_text(work_dir: str | Path) -> str:
    """The path that the pointer of a work directory holds; '' where there is none."""
    try:
        return (Path(work_dir) / POINTER).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return ''


def pointed_at(work_dir: str | Path, folders: Iterable[Path] = ()) -> Path | None:
    """The checkpoint that the pointer of a work directory names, whether it exists or not.

    mmengine writes an absolute path, and its own tools read the text as a path from where they are
    started; so it stays one, and in a work directory that was copied it names the original. The
    file of that name beside the pointer therefore comes first.

    Args:
        work_dir: Work directory of the run.
        folders: Other folders of the run's checkpoints.

    Returns:
        Its path; None where there is no pointer, or an empty one.
    """
    text = pointer_text(work_dir)
    name = Path(text).name
    if not name:
        return None
    own = [folder / name for folder in (Path(work_dir), *folders)]
    return next((path for path in (*own, Path(text)) if path.is_file()), own[0])
