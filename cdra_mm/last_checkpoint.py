"""Which checkpoint of a work directory is the newest: a file of mmengine says so."""

from __future__ import annotations

from pathlib import Path

__all__ = ['POINTER', 'pointed_at']

POINTER = 'last_checkpoint'  # mmengine's file with the path of the newest checkpoint


def pointed_at(work_dir: str | Path) -> Path | None:
    """The checkpoint that the pointer of a work directory names, whether it exists or not.

    Returns:
        Its path, beside the pointer where the work directory has been moved since; None where
        there is no pointer, or an empty one.
    """
    pointer = Path(work_dir) / POINTER
    try:
        text = pointer.read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not text:
        return None
    path = Path(text)
    return path if path.is_file() else pointer.with_name(path.name)
