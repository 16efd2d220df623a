"""What a checkpoint file holds, told from its index: nothing is unpickled, no tensor is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ['holds', 'is_of_a_run', 'is_run_checkpoint', 'read_index']

# Keys of a run's checkpoint that weights, merged and published files lack.
_RUN_KEYS = ('message_hub', 'optimizer')
_LARGEST = 2**28  # bytes; of an index that claims more, no more is read


def read_index(path: Path) -> bytes | None:
    """The pickled part of a file that ``torch.save`` wrote; None for what is damaged or foreign."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith('data.pkl'))
            with archive.open(name) as file:
                return file.read(_LARGEST)
    except (OSError, zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError):
        return None


def holds(index: bytes | None, text: str) -> bool:
    """Whether a text, such as a key, stands somewhere in an index.

    Protocol 2, which torch uses, writes a text after its length in four bytes: a longer text with
    these words in it is not taken for it.
    """
    return b'X' + len(text).to_bytes(4, 'little') + text.encode() in (index or b'')


def is_run_checkpoint(index: bytes | None) -> bool:
    """Whether an index is that of a checkpoint that a run could go on from."""
    return all(holds(index, key) for key in _RUN_KEYS)


def is_of_a_run(path: Path) -> bool:
    """Whether a run wrote this checkpoint; a best one, without an optimizer, is one too."""
    return holds(read_index(path), _RUN_KEYS[0])
