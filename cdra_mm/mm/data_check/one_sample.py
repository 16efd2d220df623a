"""One sample through the loading steps of its data set, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from PIL import Image

from .label_rule import LabelRule

__all__ = ['files_of', 'load', 'mask_fault', 'packed_ids', 'reason', 'step_name']

ORIENTATION = 0x0112  # the tag of EXIF
NAMED = 5


def files_of(info: Mapping[str, Any]) -> list[str]:
    """The files that a sample is read from, its image first."""
    return [
        str(value)
        for key, value in info.items()
        if key.endswith('_path') and isinstance(value, str | os.PathLike) and str(value)
    ]


def load(info: dict[str, Any], steps: list[Callable[[Any], Any]]) -> dict[str, Any] | None:
    """Runs the first steps of a pipeline, until image and label map are there.

    Returns:
        What is loaded by then; None where a step gives the sample up.
    """
    data: dict[str, Any] = info
    for step in steps:
        after = step(data)
        if after is None:
            return None
        if 'img' not in after and 'img' in data:
            break  # packed: there was no step that loads the label map
        data = after
        if 'img' in data and ('seg_map_path' not in data or 'gt_seg_map' in data):
            break
    return data


def mask_fault(data: Mapping[str, Any]) -> str:
    """What is wrong with a label map just loaded, in words that begin after its name; '' if none.

    Args:
        data: Of a pipeline, right after the step that loads the label map.
    """
    mask, image = data['gt_seg_map'], data.get('img')
    if mask.ndim != 2:
        equal = mask.ndim == 3 and (mask[..., :1] == mask[..., : min(3, mask.shape[2])]).all()
        hint = 'its channels are equal, so keep one' if equal else 'translate its colours to ids'
        channels = mask.shape[-1] if mask.ndim == 3 else 0
        return f'has {channels} channels, expected one of class ids: {hint}'
    shape = data.get('ori_shape') or (image.shape[:2] if image is not None else mask.shape)
    if tuple(mask.shape) == tuple(shape[:2]):
        return ''
    text = (
        f'is {mask.shape[1]} x {mask.shape[0]} pixels, but its image {data.get("img_path", "")} is '
        f'{shape[1]} x {shape[0]}'
    )
    if tuple(mask.shape) == tuple(shape[1::-1]) and _is_rotated(data.get('img_path')):
        return f'{text}, turned by its EXIF orientation: store the image turned, without that tag'
    return f'{text}: make them of one size (a mask without interpolation)'


def packed_ids(data: Any) -> list[int]:
    """The label ids of a packed training sample; nothing where labels are no ids."""
    sample = data.get('data_samples') if isinstance(data, Mapping) else None
    if sample is None or 'gt_sem_seg' not in sample:
        return []
    labels = sample.gt_sem_seg.data
    labels = labels.numpy() if hasattr(labels, 'numpy') else np.asarray(labels)
    if labels.dtype.kind not in 'iu' or not labels.size:
        return []
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < 1 << 16:
        return np.flatnonzero(np.bincount(labels.ravel())).tolist()
    return np.unique(labels).tolist()


def wrong_ids(ids: list[int], rule: LabelRule) -> str:
    """Which ids do not fit, in words; '' if all do."""
    wrong = rule.wrong(ids)
    if not wrong:
        return ''
    return f'has the label ids {wrong[:NAMED]}: {rule.expected()}'


def reason(error: BaseException) -> str:
    """Why a step failed, in one line."""
    if isinstance(error, FileNotFoundError):
        return f'{error.filename or error} does not exist'
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def step_name(step: Any) -> str:
    """The name of a transform."""
    if isinstance(step, Compose):
        return 'Compose'
    return getattr(step, '__name__', type(step).__name__)


def _is_rotated(path: Any) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # only for a hint
        return False
