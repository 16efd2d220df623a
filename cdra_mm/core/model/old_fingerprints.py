"""Fingerprints of plans of earlier releases: one hash of everything, which can name nothing.

``2:`` and 64 digits   SHA-256 of the table of digests of the weights that compete
64 digits              SHA-256 of these weights (`fingerprint_of`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import nn

from .digests import digests_of, fingerprint_of
from .targets import find_targets

__all__ = ['is_old', 'old_fingerprint']

OF_TABLE = '2:'


def is_old(given: str) -> bool:
    """Whether a fingerprint is of an earlier release."""
    digits = given.removeprefix(OF_TABLE)
    return len(digits) == 64 and not set(digits) - set('0123456789abcdef')


def old_fingerprint(given: str, model: nn.Module, digests: Mapping[str, str] | None = None) -> str:
    """The fingerprint of what competes in a model, made as `given` was.

    Args:
        given: A fingerprint of an earlier release.
        model: The model.
        digests: Table of its weights, where it is known already.
    """
    names = {target.path for target in find_targets(model).values()}
    state = model.state_dict()
    if not given.startswith(OF_TABLE):
        return fingerprint_of({name: state[name] for name in names})
    known = digests_of({n: state[n] for n in names}) if digests is None else digests
    lines = ''.join(f'{name} {known[name]}\n' for name in sorted(names))
    return OF_TABLE + hashlib.sha256(lines.encode()).hexdigest()
