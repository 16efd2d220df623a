"""A run's frozen base in int8: which weights, when, and where it stays in full precision.

Scores, head fitting and the search for a plan are done on the base as it was loaded. After the
adapters are in, the matrices that the named base brings back bit for bit are quantised; what it
does not bring back has no other copy and stays as it is. Checkpoints are those of a base in full
precision: they leave the named base out, and their table and fingerprint are those of its file.
The record's settings say that the run was trained on int8, and whoever loads the checkpoint gets
the base that it was trained on: a resumed run, a test, an inference API. To merge or to export
keeps the base in full precision (`keep_full`).
"""

from __future__ import annotations

from mmengine.logging import MMLogger
from torch import nn

from cdra_mm.core import find_targets, quantize_base
from cdra_mm.core.adapters.small_base import BASE_DTYPES, base_bytes
from cdra_mm.core.model.targets import parameter_of
from cdra_mm.errors import CheckpointError, ConfigError

from .base_source import BaseSource
from .record import Record

__all__ = ['check_can_be_small', 'keep_full', 'make_small']

KEY = 'base_dtype'  # in the settings of a record
_FULL = '_cdra_keeps_full'


def check_can_be_small(
    base_dtype: str | None,
    backbone: nn.Module,
    source: BaseSource | None,
    reproduced: set[str],
) -> None:
    """Refuses, before anything is scored, a base that cannot be put back once it is quantised.

    Args:
        base_dtype: The setting; None asks for nothing.
        backbone: The plain backbone.
        source: Where its weights come from.
        reproduced: Names of those that the source brings back bit for bit.

    Raises:
        ConfigError: If no matrix can be kept in it.
    """
    if base_dtype is None:
        return
    if source is None or not _matrices(backbone) & reproduced:
        named = f'{source.describe()} brings back none' if source is not None else 'none is named'
        raise ConfigError(
            f'base_dtype={base_dtype!r} needs a file that brings the frozen weights back, to merge '
            f'into full precision ({named}): name the pretrained weights in init_cfg or load_from'
        )
    for target in find_targets(backbone).values():
        dtype = str(parameter_of(backbone, target).dtype).removeprefix('torch.')
        if len(target.shape) == 2 and dtype != 'float32':
            raise ConfigError(
                f'base_dtype={base_dtype!r} quantises a base in float32, {target.path} is {dtype}: '
                'load the backbone in float32, or leave base_dtype out'
            )


def make_small(backbone: nn.Module, record: Record) -> None:
    """Quantises what a record says that its run quantised; once is enough.

    Args:
        backbone: The adapted backbone, which holds the record's base.
        record: The record.

    Raises:
        CheckpointError: If the record asks for what this release does not know.
    """
    base_dtype = record.settings.get(KEY)
    if base_dtype is None or backbone.__dict__.get(_FULL):
        return
    if base_dtype not in BASE_DTYPES:
        raise CheckpointError(
            f'the checkpoint was trained with base_dtype={base_dtype!r:.80}: this release knows '
            f'{", ".join(BASE_DTYPES)}; use the release that wrote it'
        )
    before = base_bytes(backbone)
    names = _matrices(backbone) & record.digests.keys()  # what was left out was frozen
    quantize_base(backbone, names=names, digests=record.digests)
    after = base_bytes(backbone)
    if after < before:
        MMLogger.get_current_instance().info(
            f'{len(names)} frozen matrices are kept in {base_dtype}: the backbone takes '
            f'{after / 1e6:.1f} MB in the place of {before / 1e6:.1f} MB'
        )


def keep_full(backbone: nn.Module) -> None:
    """A backbone that loads a checkpoint from now on keeps the base in full precision."""
    backbone.__dict__[_FULL] = True


def _matrices(backbone: nn.Module) -> set[str]:
    return {t.path for t in find_targets(backbone).values() if len(t.shape) == 2}
