"""The model part of a new config: a shipped backbone, or one that a weight file asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from ..inputs import check_weight_file
from ..packages import CONFIGS
from ..weights import read_common, read_state_dict
from ..weights.architectures import backbone_config
from ..weights.layouts import OPENMMLAB_BEIT, OPENMMLAB_SWIN, OPENMMLAB_VIT, recognise

__all__ = ['HEADS', 'ModelPart', 'find_model', 'shipped_backbones']

MODELS = CONFIGS / '_base_' / 'models'
HEADS = ('linear', 'linear4', 'upernet')
OWN_LAYOUTS = (OPENMMLAB_BEIT, OPENMMLAB_SWIN, OPENMMLAB_VIT)
SWIN_STEP = 32  # pixels for one entry of the last feature map


@dataclass(frozen=True)
class ModelPart:
    """A model without its classes.

    Attributes:
        name: For people.
        model: Config of the segmentor.
        size: Image size that the weights were made for, in pixels.
        step: Crops have to be a multiple of it.
        backbone_rate: Learning rate of the backbone relative to the head's.
        download: Address that the weights come from, '' for a file.
    """

    name: str
    model: dict[str, Any]
    size: int
    step: int
    backbone_rate: float
    download: str


def shipped_backbones() -> list[str]:
    """Names of the backbones whose weights are downloaded: DINOv2 in its sizes."""
    return sorted(
        path.stem.removesuffix('_linear').replace('_', '-')
        for path in MODELS.glob('dinov2_*_linear.py')
        if (MODELS / f'{path.stem.removesuffix("_linear")}.py').is_file()
    )


def find_model(backbone: str, head: str, weights: str) -> ModelPart:
    """The backbone under the head.

    Args:
        backbone: One of `shipped_backbones`; without meaning where `weights` is given.
        head: One of `HEADS`.
        weights: A weight file that says itself what backbone it is for, or ''.

    Raises:
        ConfigError: If one of them is unknown, or they do not go together.
        CheckpointError: If the file is missing or not understood.
    """
    if head not in HEADS:
        raise ConfigError(unknown('--head', head, HEADS))
    return _of_file(weights, head) if weights else _shipped(backbone, head)


def _shipped(backbone: str, head: str) -> ModelPart:
    known = shipped_backbones()
    if backbone not in known:
        said = unknown('--backbone', backbone, known)
        raise ConfigError(f'{said}, or a weight file with --weights')
    config = _read(f'{backbone.replace("-", "_")}_{head}.py')
    model = config.model.to_dict()
    checkpoint = str(model['backbone']['init_cfg']['checkpoint'])
    size, step = model['backbone']['img_size'], model['backbone']['patch_size']
    download = checkpoint if '://' in checkpoint else ''
    return ModelPart(f'{backbone} under {head}', model, size, step, 1.0, download)


def _of_file(path: str, head: str) -> ModelPart:
    check_weight_file(path, '--weights')
    state = read_state_dict(path)
    backbone = backbone_config(read_common(state), 'mmpretrain')
    if backbone.get('in_channels', 3) != 3:
        raise ConfigError(
            f'--weights {path} is for images of {backbone["in_channels"]} channels: expected 3'
        )
    init = dict(type='Pretrained', checkpoint=str(Path(path).resolve()))
    found = recognise(state)
    if found is not None and found[0] in OWN_LAYOUTS and found[1]:
        init['prefix'] = found[1]  # of whole models of OpenMMLab; other names are translated
    hierarchical = 'depths' in backbone['arch']
    if hierarchical:
        stages = len(backbone['arch']['depths'])
        width, step = backbone['arch']['embed_dims'] * 2 ** (stages - 1), SWIN_STEP
        size = 224
    else:
        backbone['out_type'] = 'featmap'
        width, step = backbone['arch']['embed_dims'], backbone['patch_size']
        size = backbone['img_size']
    kind = backbone['type'].partition('.')[2]
    if head != 'linear' and kind != 'VisionTransformer':
        raise ConfigError(f'--head {head} is for plain ViTs, and {path} is a {kind}: take linear')
    parts = _read(f'heads/{head}.py')
    model = _read('segmentor.py').model.to_dict()
    model['backbone'] = backbone | {'init_cfg': init}
    if head == 'linear':
        model['decode_head'] = parts.linear.to_dict() | {'in_channels': width}
    else:
        depth = backbone['arch']['num_layers']
        quarters = [(i + 1) * depth // 4 - 1 for i in range(4)]
        part = parts[head].to_dict()
        model['backbone'] |= {'out_indices': quarters} | part['backbone']
        model['decode_head'] = part['decode_head'] | {'in_channels': [width] * 4}
        if head == 'upernet':
            model['neck'] = part['neck'] | {'embed_dim': width}
            model['auxiliary_head'] = part['auxiliary_head'] | {'in_channels': width}
    name = f'{kind} {width} wide ({Path(path).name}) under {head}'
    # Of weights that are not DINOv2's, some forget at the rate that a head wants.
    return ModelPart(name, model, size, step, 0.1, '')


def _read(name: str) -> Config:
    path = MODELS / name
    if not path.is_file():
        raise ConfigError(f'{path} does not exist: this copy of cdra_mm is incomplete')
    return Config.fromfile(path)
