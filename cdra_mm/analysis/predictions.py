"""A run's own model on its own validation images."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.mm.backbone import attach_loader, keep_base
from cdra_mm.mm.checkpoints.base_source import named_bases
from cdra_mm.mm.inputs import check_inputs, refuse_foreign_weights
from cdra_mm.mm.launch import build_runner, prepare_config
from cdra_mm.mm.model_kind import is_kind
from cdra_mm.mm.packages import drop_own_scope, register_packages
from cdra_mm.mm.painting import without_backends
from cdra_mm.mm.rebuild import plain_model

from .run import Run

__all__ = ['Predicted', 'Show', 'evenly_spaced', 'predict']

Show = Callable[[int, int], Any]
"""Called with the number of images done and of all."""

# What a config has for other stages than the test that predicts here.
NOT_PREDICTED = (
    *('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    *('val_dataloader', 'val_cfg', 'val_evaluator'),
)


@dataclass(frozen=True)
class Predicted:
    """The predictions of a run, to be read once.

    Attributes:
        classes: Names of the classes.
        palette: Their colours, ``[red, green, blue]`` of 255 each; empty if the data set has none.
        samples: The data samples with truth and prediction, one an image.
        num_images: How many they are.
        num_all: Images of the validation set.
        config: The config they were made with.
    """

    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    samples: Iterator[Any]
    num_images: int
    num_all: int
    config: Config

    @property
    def described(self) -> str:
        """Which images they are, in words."""
        if self.num_images == self.num_all:
            return f'all {self.num_all} validation images'
        return f'{self.num_images} of {self.num_all} validation images, evenly spaced'


@contextmanager
def predict(
    run: Run, kind: str, *, max_images: int | None = None, show: Show | None = None
) -> Iterator[Predicted | None]:
    """Builds a run's model from its config and checkpoint and runs it on validation images.

    As ``cdra test`` does, but on the validation loader, in a temporary work directory.

    Args:
        run: The run. What stands in the way is noted in its ``missing``.
        kind: What its model has to be, a key of `model_kind.KINDS`.
        max_images: At most so many images, evenly spaced.
        show: Called after each batch.

    Yields:
        The predictions, or None where there are none of that kind, or none can be made.
    """
    try:
        cfg = _config(run, kind)
    except CDRAError as error:
        run.missing.append(f'Predictions cannot be shown: {error}.')
        cfg = None
    if cfg is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        # A name of its own: mmengine keeps loggers and runners by their names.
        cfg.experiment_name = f'predictions_{Path(folder).name}'
        try:
            with _quiet():
                runner = _runner(cfg)
                loader = _loader(runner, cfg, max_images)
        except (CDRAError, OSError) as error:
            run.missing.append(f'Predictions cannot be shown: {error}.')
            yield None
            return
        images: Any = loader.dataset
        meta = images.dataset.metainfo
        yield Predicted(
            classes=tuple(meta.get('classes') or ()),
            palette=meta.get('palette') or (),
            samples=_samples(runner, loader, show or (lambda done, total: None)),
            num_images=len(images),
            num_all=len(images.dataset),
            config=cfg,
        )


def evenly_spaced(size: int, most: int | None) -> list[int]:
    """At most so many positions below `size`, evenly spaced, the first included.

    Example:
        >>> evenly_spaced(10, 4), evenly_spaced(3, None)
        ([0, 2, 5, 7], [0, 1, 2])
    """
    count = size if most is None else min(size, most)
    return [i * size // count for i in range(count)]


def _config(run: Run, kind: str) -> Config | None:
    """The config to predict with; None if the run's model is not of that kind.

    Raises:
        CDRAError: If it is, and something that predicting needs is not there.
    """
    if run.config is None or run.config.get('model') is None:
        raise ConfigError('the config of the run is not known')
    register_packages()
    cfg = prepare_config(drop_own_scope(Config(run.config.to_dict())))
    if not is_kind(cfg, kind):
        return None
    if run.checkpoint is None:
        raise ConfigError('the run has no checkpoint yet')
    if cfg.get('val_dataloader') is None:
        raise ConfigError('the config has no val_dataloader, so there is nothing to predict')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.get('val_evaluator') or []
    cfg.test_cfg = cfg.get('test_cfg') or {}
    keep_base(cfg)
    for key in NOT_PREDICTED:  # mmengine asks each stage for all of its parts, or none
        cfg.pop(key, None)
    cfg.load_from, cfg.resume = str(run.checkpoint), False
    without_backends(cfg)
    cfg.log_level, cfg.launcher = 'ERROR', 'none'
    check_inputs(cfg, 'test')
    return cfg


def _runner(cfg: Config) -> Runner:
    runner = build_runner(cfg)
    model = plain_model(runner)
    refuse_foreign_weights(model)
    if hasattr(model, 'backbone'):
        attach_loader(model.backbone, named_bases(cfg, model))
    runner.load_or_resume()
    model.eval()
    return runner


def _loader(runner: Runner, cfg: Config, max_images: int | None) -> DataLoader[Any]:
    built = runner.build_dataloader(cfg.test_dataloader)
    return DataLoader(
        Subset(built.dataset, evenly_spaced(len(built.dataset), max_images)),
        batch_size=built.batch_size,
        num_workers=built.num_workers,
        collate_fn=built.collate_fn,
    )


def _samples(runner: Runner, loader: DataLoader[Any], show: Show) -> Iterator[Any]:
    done, total = 0, len(loader.dataset)  # type: ignore[arg-type]
    show(done, total)
    for batch in loader:
        with torch.no_grad():
            outputs = runner.model.test_step(batch)
        yield from outputs
        done += len(outputs)
        show(done, total)


@contextmanager
def _quiet() -> Iterator[None]:
    """A report is not the place for what a runner says of itself while it is built."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)
