"""The runs whose start is measured: a shipped config, its images and its weights.

Both are made small enough for a CPU, and `StartCase.reduced` says how. The weights are written
under mmpretrain's names, so that OpenMMLab without this package reads them too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cdra_mm.data.demo_images import make_demo
from cdra_mm.errors import ConfigError
from cdra_mm.reading import read_torch

from ..arguments import STARTS

__all__ = ['CASES', 'REPOSITORY', 'StartCase', 'make_case']

REPOSITORY = Path(__file__).resolve().parents[3]
IN_THIS_PROCESS = (  # no workers: what they load would be nobody's time
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
)
TRAINING, VALIDATION, SIDE = 64, 8, 518  # generated images
CROP, BATCH = 126, 2  # of DINOv2: 81 patches
CAMVID_IMAGES, DINOV2_IMAGES = 48, 16


@dataclass(frozen=True)
class StartCase:
    """A run.

    Attributes:
        name: Its name on the command line.
        config: Path of its config.
        options: ``key=value`` overrides.
        environment: What it reads from the environment.
        images: How many are scored, and trained on in as many steps as that takes.
        batch: Images a step.
        reduced: What differs from the shipped config.
    """

    name: str
    config: Path
    options: tuple[str, ...]
    environment: dict[str, str]
    images: int
    batch: int
    reduced: str


def make_case(name: str, folder: Path, seed: int) -> StartCase:
    """Makes what a run reads.

    Args:
        name: A key of `CASES`.
        folder: Where it is written.
        seed: Of generated images and random weights.

    Raises:
        ConfigError: If data or weights that cannot be generated are missing.
    """
    return CASES[name](folder, seed)


def _camvid(folder: Path, seed: int) -> StartCase:
    data = _named('CDRA_CAMVID_ROOT', 'data/camvid', 'CamVid (cdra data prepare camvid)')
    weights = _named('CDRA_DEIT_TINY', 'checkpoints/deit_tiny_in1k_timm.safetensors', 'DeiT-Tiny')
    return StartCase(
        'camvid',
        REPOSITORY / 'configs/cdra/deit_tiny_camvid.py',
        IN_THIS_PROCESS,
        {
            'CDRA_CAMVID_ROOT': str(data),
            'CDRA_DEIT_TINY': str(_converted(weights, folder / 'deit_tiny.pth')),
        },
        CAMVID_IMAGES,
        8,
        f'CamVid, DeiT-Tiny, {CAMVID_IMAGES} images scored in place of 400, no workers',
    )


def _dinov2(folder: Path, seed: int) -> StartCase:
    images = folder / 'images'
    make_demo(images, seed=seed, num_training=TRAINING, num_validation=VALIDATION, size=SIDE)
    crop = f'({CROP},{CROP})'
    return StartCase(
        'dinov2',
        REPOSITORY / 'configs/cdra/dinov2_ade20k.py',
        (
            *IN_THIS_PROCESS,
            f'train_dataloader.batch_size={BATCH}',
            f'train_dataloader.dataset.pipeline.3.crop_size={crop}',
            f'model.data_preprocessor.size={crop}',
        ),
        {
            'CDRA_ADE20K_ROOT': str(images),
            'CDRA_DINOV2_BASE': str(_random_dinov2(folder, seed)),
        },
        DINOV2_IMAGES,
        BATCH,
        f'DINOv2-B with random weights, {TRAINING} generated images of {SIDE} pixels, crops of '
        f'{CROP} in place of 518, batch {BATCH} in place of 16, {DINOV2_IMAGES} images scored in '
        'place of 400, no workers',
    )


CASES: dict[str, Callable[[Path, int], StartCase]] = {'camvid': _camvid, 'dinov2': _dinov2}
assert tuple(CASES) == STARTS


def _named(variable: str, default: str, what: str) -> Path:
    path = Path(os.environ.get(variable, default)).absolute()
    if not path.exists():
        raise ConfigError(f'{what} is not at {path}: name it in {variable}')
    return path


def _random_dinov2(folder: Path, seed: int) -> Path:
    """Random weights as mmpretrain's file of DINOv2 has them: below ``backbone.``."""
    import timm

    torch.manual_seed(seed)
    model = timm.create_model('vit_base_patch14_dinov2', pretrained=False)
    original, out = folder / 'dinov2_original.pth', folder / 'dinov2.pth'
    torch.save(model.state_dict(), original)
    weights = read_torch(_converted(original, out))['state_dict']
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in weights.items()}}, out)
    return out


def _converted(weights: Path, out: Path) -> Path:
    """A file under mmpretrain's names, by the command that makes one."""
    command = [sys.executable, str(REPOSITORY / 'tools/convert_weights.py'), str(weights), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ConfigError(f'{weights} cannot be converted: {result.stderr.strip()[-300:]}')
    return out
