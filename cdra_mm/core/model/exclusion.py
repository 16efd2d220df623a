"""Targets that a user leaves out of the competition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean

from .targets import Target

__all__ = ['exclude_targets']

SHOWN = 12  # roles in a message


def exclude_targets(targets: Mapping[str, Target], exclude: Sequence[str]) -> dict[str, Target]:
    """The targets that are left.

    Args:
        targets: Targets by name; see `find_targets`.
        exclude: What to leave out, each a role (``'norm'``), a target
            (``'layers.0.attn.qkv.weight:q'``), a parameter (``'layers.0.attn.qkv.weight'``)
            or a module with all that is below it (``'layers.0.attn'``).

    Raises:
        ConfigError: If an entry is none of these, or nothing is left.
    """
    left = dict(targets)
    for entry in exclude:
        out = [name for name, target in targets.items() if entry in _names_of(name, target)]
        if not out:
            known = dict.fromkeys(
                alias for name, target in targets.items() for alias in _names_of(name, target)
            )
            roles = list(dict.fromkeys(target.role for target in targets.values()))
            raise ConfigError(
                f'exclude: {entry!r} is nothing that competes{did_you_mean(entry, known)}: '
                f'expected a role ({", ".join(roles[:SHOWN])}), or the name of a parameter or '
                'module of the blocks'
            )
        for name in out:
            left.pop(name, None)
    if not left:
        raise ConfigError(
            f'exclude={list(exclude)!r} leaves nothing to compete: leave fewer roles or modules out'
        )
    return left


def _names_of(name: str, target: Target) -> list[str]:
    """All that an entry may call a target."""
    parts = target.module.split('.')
    modules = ['.'.join(parts[:end]) for end in range(len(parts), 0, -1)]
    return [target.role, name, target.path, *modules]
