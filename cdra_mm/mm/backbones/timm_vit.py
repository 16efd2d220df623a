"""timm's vision transformers as dense backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean

from .timm_weights import ADDRESS, import_timm, load_weights

__all__ = ['TimmViT']

OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap')
FINAL_NORMS = ('every', 'last', 'none')
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@MODELS.register_module()
class TimmViT(BaseModule):
    """A plain transformer of timm that gives feature maps, under OpenMMLab's conventions.

    For what mmpretrain lacks: DINOv2 with registers, DINOv3 (rotary embeddings), EVA-02,
    and any other ViT, DeiT, EVA or BEiT of timm. Images of any size that is a multiple
    of the patch are taken, but for BEiT, whose tables of relative positions have one
    size: ``img_size``. timm's model is the child ``vit``: its weights are
    ``backbone.vit.<timm's name>`` in a checkpoint.

    Args:
        model_name: timm's name, with or without the tag of pretrained weights, for example
            ``'vit_base_patch14_reg4_dinov2.lvd142m'`` or ``'vit_base_patch16_dinov3.lvd1689m'``.
        out_indices: Layers to return, ascending; negative ones count from the last.
        img_size: Size that position embeddings are made for, pixels, ``(height, width)`` or one
            number; default: the size of timm's pretrained weights. Other inputs resize them.
        out_type: ``'featmap'``: ``[B, E, H/p, W/p]``; ``'cls_token'``: the class token
            ``[B, E]``; ``'avg_featmap'``: the mean of the patch tokens ``[B, E]``.
        final_norm: Which returned layers pass through the model's final norm: ``'every'``
            as in DINOv2's multi-layer features, ``'last'`` the network's last only, as
            mmpretrain does it, or ``'none'``.
        drop_path_rate: Rate of stochastic depth of the last layer, from 0 for the first.
        pretrained: Load timm's pretrained weights from their hub, as
            ``init_cfg=dict(type='TimmPretrained')`` does.
        dtype: What the weights are kept and computed in: ``'float32'``, or ``'bfloat16'`` for a
            backbone of billions of frozen weights (docs/large_backbones.md). Adapters are fp32 in
            either case, and so are the returned features.
        options: Further arguments of timm's model.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads a file or an address, with
            the names of timm or of the project that published the weights, resized as timm does
            it; ``checkpoint='timm://<name>'`` loads the weights of that name from timm's hub.

    Attributes:
        vit: timm's model, without a classifier.
        narrow: What the weights are in where it is not fp32.
        embed_dims: E.
        patch_size: p, pixels.
        out_indices: Returned layers, from 0.

    Raises:
        ConfigError: If timm is missing, the model is unknown or none of this family, or a
            setting does not fit it.
    """

    is_init: bool

    def __init__(
        self,
        model_name: str,
        out_indices: int | Sequence[int] = (-1,),
        img_size: int | tuple[int, int] | None = None,
        out_type: str = 'featmap',
        final_norm: str = 'every',
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        dtype: str = 'float32',
        options: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(_weight_config(model_name, pretrained, init_cfg))
        for name, value, allowed in (
            ('out_type', out_type, OUT_TYPES),
            ('final_norm', final_norm, FINAL_NORMS),
            ('dtype', dtype, DTYPES),
        ):
            if value not in allowed:
                raise ConfigError(f'{name}={value!r}: expected one of {", ".join(allowed)}')
        settings = dict(num_classes=0, drop_path_rate=drop_path_rate, **(options or {}))
        if dtype != 'float32':
            settings['dtype'] = DTYPES[dtype]
        if img_size is not None:
            settings['img_size'] = img_size
        self.vit = _build(model_name, settings)
        self.model_name, self.out_type, self.final_norm = model_name, out_type, final_norm
        self.narrow = None if dtype == 'float32' else DTYPES[dtype]
        self.embed_dims = int(self.vit.embed_dim)
        self.patch_size = int(self.vit.patch_embed.feat_ratio())
        self.out_indices = _positions(out_indices, len(self.vit.blocks))
        if out_type == 'cls_token' and getattr(self.vit, 'cls_token', None) is None:
            raise ConfigError(f'{model_name} has no class token: use out_type="avg_featmap"')
        self._drop_unused()

    def _drop_unused(self) -> None:
        """What no output depends on must hold no parameters: DDP would wait for their gradients."""
        vit = self.vit
        if self.out_type == 'featmap':
            if self.final_norm != 'none' and isinstance(vit.norm, nn.Identity):
                raise ConfigError(
                    f'{self.model_name} has no norm for tokens, it normalises after pooling: '
                    'set final_norm="none"'
                )
            vit.fc_norm = nn.Identity()
        if self.final_norm == 'none':
            vit.norm, vit.fc_norm = nn.Identity(), nn.Identity()
        if getattr(vit, 'attn_pool', None) is not None:
            vit.attn_pool = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The chosen layers of images ``[B, 3, H, W]``.

        Raises:
            ConfigError: If the size of the images does not fit.
        """
        height, width = self._grid(x)
        with_prefix = self.out_type == 'cls_token'
        layers = self.vit.forward_intermediates(
            x.to(self.narrow) if self.narrow else x,
            indices=list(self.out_indices),
            return_prefix_tokens=with_prefix,
            stop_early=True,
            output_fmt='NLC',
            intermediates_only=True,
        )
        outputs = []
        for index, layer in zip(self.out_indices, layers, strict=True):
            tokens = layer[1][:, :1] if with_prefix else layer
            is_last = index == len(self.vit.blocks) - 1
            normalise = self.final_norm == 'every' or self.final_norm == 'last' and is_last
            tokens = self.vit.norm(tokens) if normalise else tokens
            if self.out_type == 'featmap':
                maps = tokens.transpose(1, 2).reshape(len(x), -1, height, width)
                outputs.append(maps.contiguous())
            else:
                pooled = tokens.mean(1)
                outputs.append(self.vit.fc_norm(pooled) if normalise else pooled)
        return tuple(out.float() for out in outputs) if self.narrow else tuple(outputs)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        size = (x.shape[-2], x.shape[-1])
        if any(side % self.patch_size for side in size):
            nearest = [max(1, round(s / self.patch_size)) * self.patch_size for s in size]
            raise ConfigError(
                f'images of {size[0]}x{size[1]} pixels: {self.model_name} takes multiples of its '
                f'patch size {self.patch_size}, for example {nearest[0]}x{nearest[1]}; change the '
                'crop size and data_preprocessor.size'
            )
        own = tuple(self.vit.patch_embed.img_size or size)
        if not getattr(self.vit, 'dynamic_img_size', False) and size != own:
            raise ConfigError(
                f'images of {size[0]}x{size[1]} pixels: this {self.model_name} takes only '
                f'{own[0]}x{own[1]}; set img_size=({size[0]}, {size[1]}) of the backbone'
            )
        return size[0] // self.patch_size, size[1] // self.patch_size

    def init_weights(self) -> None:
        """Loads what `init_cfg` names; without one, timm's random weights stay.

        Raises:
            CheckpointError: If the weights cannot be had, or do not fit the model wholly.
        """
        # mmengine's own would call timm's init_weights, which draws new ones.
        if not self.is_init and self.init_cfg:
            config = cast('dict[str, Any]', self.init_cfg)
            load_weights(self.vit, config['checkpoint'], config.get('prefix') or '')
        self.is_init = True


def _weight_config(
    model_name: str, pretrained: bool, init_cfg: dict[str, Any] | list[dict[str, Any]] | None
) -> dict[str, Any] | None:
    """The one ``Pretrained`` config: checkpoints record by it where the base came from."""
    configs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg] if init_cfg else []
    if pretrained:
        configs = [*configs, dict(type='TimmPretrained')]
    if len(configs) > 1:
        raise ConfigError(f'weights from {len(configs)} places: give one of pretrained, init_cfg')
    if not configs:
        return None
    (config,) = configs
    if config.get('type') == 'TimmPretrained':
        return dict(type='Pretrained', checkpoint=ADDRESS + model_name)
    if config.get('type') != 'Pretrained' or not config.get('checkpoint'):
        raise ConfigError(
            f'init_cfg={config!r}: TimmViT takes dict(type="Pretrained", checkpoint=...) or '
            'dict(type="TimmPretrained"); without one, timm draws the weights'
        )
    return dict(config)


def _build(model_name: str, settings: dict[str, Any]) -> Any:
    timm = import_timm()
    architecture, _, tag = model_name.partition('.')
    known = timm.list_models(pretrained=True) if tag else timm.list_models()
    if not timm.is_model(architecture) or (tag and model_name not in known):
        raise ConfigError(
            f'timm {timm.__version__} has no model {model_name!r}'
            f'{did_you_mean(model_name, known)}: see timm.list_models()'
        )
    try:
        try:
            vit = timm.create_model(model_name, **{'dynamic_img_size': True, **settings})
        except TypeError as error:  # BEiT takes one size only
            if 'dynamic_img_size' not in str(error):
                raise
            vit = timm.create_model(model_name, **settings)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f'timm cannot build {model_name} with {settings}: {error}') from error
    families = timm.models.VisionTransformer, timm.models.Eva, timm.models.Beit
    if not isinstance(vit, families):
        raise ConfigError(
            f'{model_name} is a {type(vit).__name__}: TimmViT takes the plain transformers of timm '
            f'({", ".join(family.__name__ for family in families)}); use mmpretrain.TIMMBackbone'
        )
    return vit


def _positions(indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    given = (indices,) if isinstance(indices, int) else tuple(indices)
    found = tuple(index + depth if index < 0 else index for index in given)
    if not found or list(found) != sorted(set(found)) or not 0 <= found[0] <= found[-1] < depth:
        raise ConfigError(
            f'out_indices={given}: expected layers of 0 to {depth - 1} (or -{depth} to -1), '
            'ascending, each once'
        )
    return found
