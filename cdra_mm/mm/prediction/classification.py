"""What is written of an image that a classifier has seen: its likeliest classes."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..compatibility import load_checkpoint
from ..host.mmpretrain_names import classes_of, inferencer_of, set_classes
from .strict_loading import class_names, dataset_of, load_weights

__all__ = ['Classification']


class Classification:
    """Predicts classes of images.

    Args:
        cfg: Config of a classifier that is ready to be built.
        checkpoint: Path or address of its checkpoint.
        device: Where it runs.
        top: How many classes of each image are told, the likeliest first.

    Raises:
        CheckpointError: If the checkpoint does not fit.
    """

    folder, table = '', 'labels.csv'
    header = ('image', 'rank', 'label', 'class', 'score')

    def __init__(self, cfg: Config, checkpoint: str, device: str, top: int = 1) -> None:
        self.top = top
        config = copy.deepcopy(cfg)
        config.test_dataloader.dataset = dataset_of(config)
        # OpenMMLab's configs keep it beside the model, too.
        config.model.setdefault('data_preprocessor', config.get('data_preprocessor'))
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(copy.deepcopy(config.model))
            loaded = load_checkpoint(checkpoint)
            load_weights(model, loaded, checkpoint)
            self.inferencer = inferencer_of(model, config, device)
        self.meta = (loaded.get('meta') or {}).get('dataset_meta') or {}

    def load(self, path: Path) -> Any:
        """An image, ready for the model."""
        (data,) = self.inferencer.preprocess([str(path)], batch_size=1)
        return data

    def predict(self, data: Any) -> Any:
        """The data sample of a loaded image."""
        with torch.no_grad():
            (sample,) = self.inferencer.forward(data)
        if not classes_of(self.inferencer):
            names, _ = class_names(self.inferencer.config, self.meta, len(sample.pred_score))
            set_classes(self.inferencer, names)
        return sample

    def write(self, sample: Any, path: Path) -> None:
        """There is no file for an image."""

    def rows(self, name: Path, sample: Any) -> list[tuple[Any, ...]]:
        """The likeliest classes of an image with their scores."""
        scores, labels = sample.pred_score.cpu().topk(min(self.top, len(sample.pred_score)))
        classes = classes_of(self.inferencer)
        return [
            (name.as_posix(), rank, label, classes[label], f'{score:.6f}')
            for rank, (label, score) in enumerate(
                zip(labels.tolist(), scores.tolist(), strict=True), 1
            )
        ]

    def picture(self, path: Path, sample: Any) -> np.ndarray:
        """The image with its class written into it, uint8 ``[H, W, 3]``, red first."""
        # Without a folder it draws nothing; the file that it writes there has another's name.
        with tempfile.TemporaryDirectory() as folder:
            (drawn,) = self.inferencer.visualize([str(path)], [sample], show_dir=folder)
        return drawn
