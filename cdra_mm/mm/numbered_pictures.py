"""mmpretrain's pictures of a test, one file an image.

mmpretrain names a picture by the file name of its image alone. The images of a classifier lie in a
folder for each class and often have the same names there, so that each picture of the first class
would be replaced by those of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner

from .host.mmpretrain_names import OpenVisualizationHook

__all__ = ['NumberedPictures']


class NumberedPictures(OpenVisualizationHook):
    """Adds the position in the data set to the names, ``NAME_POSITION.png``."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._seen = 0  # images of this process

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Mapping[str, Any],
        outputs: Sequence[Any],
    ) -> None:
        """Paints the images of a batch, every ``interval``-th of all."""
        for image, sample in zip(data_batch['inputs'], outputs, strict=True):
            # mmengine's sampler deals the images out to the processes in turn.
            position = self._seen * get_world_size() + get_rank()
            self._seen += 1
            if position % self.interval == 0:
                self.paint(image, sample, position)
