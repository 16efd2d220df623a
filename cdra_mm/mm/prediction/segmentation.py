"""What is written of an image that a segmentor has seen: a map of class ids, and class shares."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from cdra_mm.errors import ConfigError
from cdra_mm.pictures.style import class_palette
from cdra_mm.storage import write_atomically

from ..data_check.label_rule import last_head
from ..host.mmseg_names import LoadingInferencer
from .strict_loading import class_names, dataset_of, load_weights

__all__ = ['Segmentation']

OPACITY = 0.5  # of the colours over an image
LARGEST_BYTE = 255


class Segmentation:
    """Predicts label maps.

    Args:
        cfg: Config of a segmentor that is ready to be built.
        checkpoint: Path or address of its checkpoint.
        device: Where it runs.
        top: Of no use here: a pixel has one class.

    Raises:
        CheckpointError: If the checkpoint does not fit.
        ConfigError: If the test pipeline does not read image files.
    """

    folder, table = 'masks', 'shares.csv'

    def __init__(self, cfg: Config, checkpoint: str, device: str, top: int = 1) -> None:
        cfg.test_dataloader.dataset = dataset_of(cfg)
        # The inferencer takes this class alone; nothing but its drawing is used of it.
        cfg.visualizer = dict(type='SegLocalVisualizer', name='predictions', vis_backends=[])
        try:
            self.inferencer = LoadingInferencer(
                cfg,
                checkpoint,
                load=partial(_load, path=checkpoint),
                device=device,
                show_progress=False,
            )
        except ValueError as error:
            if 'LoadImageFromFile' not in str(error):
                raise
            raise ConfigError(f'the test pipeline of the config: {error}') from None
        meta = self.inferencer.model.dataset_meta
        self.classes: list[str] = meta['classes']
        self.header = ('image', 'width', 'height', *(f'{name} (percent)' for name in self.classes))

    def load(self, path: Path) -> Any:
        """An image, ready for the model."""
        (data,) = self.inferencer.preprocess([str(path)], batch_size=1)
        return data

    def predict(self, data: Any) -> Any:
        """The data sample of a loaded image.

        Raises:
            ConfigError: If it has no label map.
        """
        (sample,) = self.inferencer.forward(data)
        if 'pred_sem_seg' not in sample:
            raise ConfigError(
                f'{type(self.inferencer.model).__name__} predicts {", ".join(sample.keys())}: '
                'expected a model that predicts classes of pixels (pred_sem_seg)'
            )
        return sample

    def write(self, sample: Any, path: Path) -> None:
        """Writes the class ids as a grey PNG, of 8 bits where they fit, else of 16."""
        ids = _ids(sample)
        wide = len(self.classes) - 1 > LARGEST_BYTE
        picture = Image.fromarray(ids.astype(np.uint16 if wide else np.uint8))
        write_atomically(path, lambda temporary: picture.save(temporary, format='PNG'))

    def rows(self, name: Path, sample: Any) -> list[tuple[Any, ...]]:
        """Size of an image and the share of each class in its pixels."""
        ids = _ids(sample)
        counts = np.bincount(ids.ravel(), minlength=len(self.classes))
        height, width = ids.shape
        shares = (f'{100 * count / ids.size:.4f}' for count in counts)
        return [(name.as_posix(), width, height, *shares)]

    def picture(self, path: Path, sample: Any) -> np.ndarray:
        """The image under the colours of its classes, uint8 ``[H, W, 3]``, red first."""
        (drawn,) = self.inferencer.visualize(
            [str(path)], [sample], return_vis=True, opacity=OPACITY, with_labels=False
        )
        return drawn


def _load(model: Any, checkpoint: Any, cfg: Any, *, path: str) -> None:
    """Loads a checkpoint that fits, and gives the model names and colours of its classes."""
    load_weights(model, checkpoint, path)
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    names, palette = class_names(cfg, meta, last_head(model).num_classes)
    colours = class_palette(len(names)) if palette is None else palette
    model.dataset_meta = {'classes': names, 'palette': [list(c) for c in colours]}


def _ids(sample: Any) -> np.ndarray:
    """Class ids ``[H, W]`` of a data sample."""
    ids: np.ndarray = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)
    return ids
