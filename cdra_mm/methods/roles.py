"""Matrices by their roles, for methods that adapt whole matrices."""

from __future__ import annotations

from collections.abc import Sequence

from cdra_mm.core import Target
from cdra_mm.errors import ConfigError, PlanError

from .base import Request

__all__ = ['ALL', 'as_roles', 'check_rank', 'matrices_with']

ALL = 'all'


def as_roles(targets: str | Sequence[str]) -> str | list[str]:
    """A setting of roles as it is kept: `ALL`, or a list, as configs and checkpoints hold it.

    A resumed run compares the two.

    Raises:
        ConfigError: If there is none.
    """
    roles = [targets] if isinstance(targets, str) else list(targets)
    if not roles:
        raise ConfigError(
            f'targets={targets!r}: expected roles such as q, k, v, proj, fc1, fc2, or {ALL!r}'
        )
    return ALL if roles == [ALL] else roles


def matrices_with(request: Request, targets: str | Sequence[str]) -> list[Target]:
    """The matrices with one of the roles that may be trained; `ALL` is every matrix.

    Raises:
        PlanError: If the backbone has no matrix of a role.
    """
    matrices = [t for t in request.targets().values() if len(t.shape) == 2]
    roles = dict.fromkeys(target.role for target in matrices)
    wanted = set(roles) if targets == ALL else set(targets)
    for role in sorted(wanted - set(roles)):
        raise PlanError(
            f'{type(request.backbone).__name__} has no matrix of the role {role!r}: targets may be '
            f'{", ".join(roles)}, or {ALL!r}'
        )
    return [target for target in matrices if target.role in wanted]


def check_rank(target: Target, rank: int) -> None:
    """Raises PlanError if a matrix is smaller than a rank."""
    rows, cols = target.shape
    if rank > min(rows, cols):
        raise PlanError(
            f'{target.name} is {rows} x {cols}: a rank of {rank} is no low rank; give a rank of at '
            f'most {min(rows, cols)}'
        )
