"""Folders of images and labels as users have them; importing this fills the two tables."""

from . import classification, files, lists, masks, pictures
from .sets import CLASSIFICATION, SEGMENTATION, Case

__all__ = [
    'CLASSIFICATION', 'SEGMENTATION', 'Case',
    'classification', 'files', 'lists', 'masks', 'pictures',
]  # fmt: skip
