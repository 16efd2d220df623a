"""Which peft this package works with: its tuner interface is not a stable one."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from cdra_mm.errors import ConfigError

__all__ = ['OLDEST', 'require_peft']

# The first in which a tuner says itself what of it is saved (`BaseTuner._get_adapter_state_dict`).
OLDEST = '0.21'


def require_peft() -> None:
    """Refuses to go on without a peft that is new enough.

    Raises:
        ConfigError: Names the version that is wanted, and the one that is there.
    """
    try:
        found = version('peft')
    except PackageNotFoundError:
        found = ''
    if not found or _numbers(found) < _numbers(OLDEST):
        raise ConfigError(
            f'cdra_mm.peft needs peft {OLDEST} or newer, '
            + (f'here is {found}' if found else 'none is installed')
            + ": pip install 'cdra-mm[peft]'"
        )


def _numbers(release: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    found = re.match(r'(\d+)(?:\.(\d+))?', release)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
