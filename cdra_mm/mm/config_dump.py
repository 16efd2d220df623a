"""Under which name mmengine puts the whole config of a run into its work directory.

It takes the name of the config file, and overwrites what has it: the user's own file where the work
directory is its folder, a base config, or the config that the training left when a test runs there.
"""

from __future__ import annotations

import ast
from itertools import count
from pathlib import Path

from mmengine.config import Config

from .host.runner_parts import set_config_filename

__all__ = ['choose_name']


def choose_name(cfg: Config, *, keep_others: bool) -> str | None:
    """Sees to it that the dump of a config replaces nothing but an earlier dump.

    Args:
        cfg: A config with its work directory; its file name is changed where needed.
        keep_others: Whether an earlier dump stays as well, as that of a training does in a test.

    Returns:
        The name that is taken instead, None where the usual one is.
    """
    given = getattr(cfg, 'filename', None)
    if given is None:
        return None
    folder, stem = Path(cfg.work_dir), Path(given).stem
    suffix = '_test' if keep_others else '_run'
    numbered = (f'{stem}{suffix}{number}.py' for number in count(2))
    usual = folder / f'{stem}.py'
    if _may_be_replaced(usual, Path(given), cfg, keep_others):
        return None
    for name in (f'{stem}{suffix}.py', *(next(numbered) for _ in range(1000))):
        if _may_be_replaced(folder / name, Path(given), cfg, keep_others=False):
            set_config_filename(cfg, str(folder / name))
            return name
    return None


def _may_be_replaced(path: Path, given: Path, cfg: Config, keep_others: bool) -> bool:
    if not path.is_file():
        return True
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):
        return False
    if not _is_dump(text):
        return False
    if keep_others or path.samefile(given):
        return text == str(cfg.pretty_text)
    return True


def _is_dump(text: str) -> bool:
    """Whether a config was written by mmengine: plain entries in order, with a work directory."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    names = [
        entry.targets[0].id
        for entry in body
        if isinstance(entry, ast.Assign) and isinstance(entry.targets[0], ast.Name)
    ]
    return len(names) == len(body) and names == sorted(names) and 'work_dir' in names
