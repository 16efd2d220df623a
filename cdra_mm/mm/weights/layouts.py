"""How each project names the weights of a vision transformer: one entry a family.

Names of every project are read into one common set, which is timm's (also that of DeiT, MAE,
DINOv2 and Swin), and written from it. A new family is one `Layout` in `LAYOUTS`: a name that
only it has, and its names beside the common ones. ``#`` stands for a block's or stage's number.

Sources: the names that github.com/facebookresearch/dinov2, facebookresearch/mae,
microsoft/unilm (BEiT), microsoft/Swin-Transformer, google-research/vision_transformer, timm 1.0,
mmpretrain 1.2 and mmseg 1.2 give their parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from . import orders

__all__ = [
    'GOOGLE_VIT',
    'LAYOUTS',
    'MMSEG_VIT',
    'OPENMMLAB_BEIT',
    'OPENMMLAB_SWIN',
    'OPENMMLAB_VIT',
    'TIMM_SWIN',
    'TIMM_VIT',
    'Layout',
    'recognise',
]

Weights = dict[str, Tensor]
Pairs = tuple[tuple[str, str], ...]

# What saving code puts in front of a network's own names.
PREFIX = r'(?:(?:module|backbone|model|teacher|_orig_mod)\.|opt/target/)*'


def _keep(weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Layout:
    """The names of one project for one kind of network.

    Attributes:
        name: For messages.
        mark: Regular expression of a name that tells this layout from all others.
        pairs: (common name, own name) of a parameter, or of the module that holds it.
        after_reading: What remains to be done once the names are the common ones.
        before_writing: The inverse of it.
    """

    name: str
    mark: str
    pairs: Pairs
    after_reading: Callable[[Weights], Weights] = _keep
    before_writing: Callable[[Weights], Weights] = _keep

    @cached_property
    def _to_common(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(own), _template(common)) for common, own in self.pairs]

    @cached_property
    def _to_own(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(common), _template(own)) for common, own in self.pairs]

    def common_name(self, name: str) -> str | None:
        """The common name of one of this layout's names, None for a foreign one."""
        return _renamed(name, self._to_common)

    def own_name(self, name: str) -> str | None:
        """This layout's name for a common one, None where it has no such weight."""
        return _renamed(name, self._to_own)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r'\#', r'(\d+)') + r'((?:\.(?:weight|bias))?)')


def _template(name: str) -> str:
    parts = name.split('#')
    filled = ''.join(rf'{part}\g<{i}>' for i, part in enumerate(parts[:-1], 1))
    return rf'{filled}{parts[-1]}\g<{len(parts)}>'


def _renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(template)
    return None


def recognise(names: Iterable[str]) -> tuple[Layout, str] | None:
    """The layout of a state dict and what stands in front of its names.

    Returns:
        The layout and the prefix (``'teacher.backbone.'``, mostly ``''``), None where no layout's
        mark is among the names.
    """
    names = list(names)
    for layout in LAYOUTS:
        pattern = re.compile(f'({PREFIX}){layout.mark}')
        match = next(filter(None, map(pattern.fullmatch, names)), None)
        if match:
            return layout, match[1]
    return None


def _same(names: Iterable[str]) -> Pairs:
    return tuple((name, name) for name in names)


def _through(pairs: Pairs, changes: Mapping[str, str]) -> Pairs:
    """The pairs with other own names for some common ones."""
    return tuple((common, changes.get(common, own)) for common, own in pairs)


TOKENS = _same(['cls_token', 'dist_token', 'reg_token', 'pos_embed', 'patch_embed.proj'])
NORMS = _same(['norm_pre', 'norm', 'fc_norm'])
ATTENTION = _same(['blocks.#.norm1', 'blocks.#.attn.qkv', 'blocks.#.attn.proj'])
FFN = _same(['blocks.#.norm2', 'blocks.#.mlp.fc1', 'blocks.#.mlp.fc2'])
SWIGLU = _same(['blocks.#.mlp.w12', 'blocks.#.mlp.w3'])
SCALES = _same(['blocks.#.ls1.gamma', 'blocks.#.ls2.gamma'])
OWN_TABLE = 'blocks.#.attn.relative_position_bias_table'
SHARED_TABLE = 'rel_pos_bias.relative_position_bias_table'
BEIT = _same([SHARED_TABLE, OWN_TABLE, 'blocks.#.attn.q_bias', 'blocks.#.attn.v_bias'])

TIMM_VIT = Layout(
    'ViT, DeiT, MAE, DINOv2 or BEiT in the names of timm and its originals',
    r'blocks\.\d+\.attn\.qkv\.weight',
    (
        *(TOKENS + NORMS + ATTENTION + FFN + SWIGLU + SCALES + BEIT),
        # Microsoft's BEiT and facebookresearch's DeiT-III and DINOv2 with registers.
        ('blocks.#.ls1.gamma', 'blocks.#.gamma_1'),
        ('blocks.#.ls2.gamma', 'blocks.#.gamma_2'),
        ('reg_token', 'register_tokens'),
    ),
    after_reading=orders.tidy_tokens,
)

OPENMMLAB_VIT = Layout(
    'a ViT of mmpretrain',
    r'layers\.\d+\.attn\.qkv\.weight',
    _through(
        TOKENS[:2] + TOKENS[3:] + NORMS + ATTENTION + FFN + SWIGLU + SCALES,
        {
            'patch_embed.proj': 'patch_embed.projection',
            'norm_pre': 'pre_norm',
            'norm': 'ln1',
            'fc_norm': 'ln2',
            'blocks.#.norm1': 'layers.#.ln1',
            'blocks.#.norm2': 'layers.#.ln2',
            'blocks.#.attn.qkv': 'layers.#.attn.qkv',
            'blocks.#.attn.proj': 'layers.#.attn.proj',
            'blocks.#.mlp.fc1': 'layers.#.ffn.layers.0.0',
            'blocks.#.mlp.fc2': 'layers.#.ffn.layers.1',
            'blocks.#.mlp.w12': 'layers.#.ffn.w12',
            'blocks.#.mlp.w3': 'layers.#.ffn.w3',
            'blocks.#.ls1.gamma': 'layers.#.attn.gamma1.weight',
            'blocks.#.ls2.gamma': 'layers.#.ffn.gamma2.weight',
        },
    ),
)

_MMPRETRAIN = dict(OPENMMLAB_VIT.pairs)

OPENMMLAB_BEIT = Layout(
    'a BEiT of mmpretrain or mmseg',
    r'layers\.\d+\.(?:gamma_1|attn\.q_bias|attn\.relative_position_bias_table)',
    _through(
        TOKENS[:1] + TOKENS[3:] + NORMS[1:] + ATTENTION + FFN + SCALES + BEIT,
        _MMPRETRAIN
        | {
            OWN_TABLE: 'layers.#.attn.relative_position_bias_table',
            'blocks.#.attn.q_bias': 'layers.#.attn.q_bias',
            'blocks.#.attn.v_bias': 'layers.#.attn.v_bias',
            'blocks.#.ls1.gamma': 'layers.#.gamma_1',
            'blocks.#.ls2.gamma': 'layers.#.gamma_2',
        },
    ),
)

MMSEG_VIT = Layout(
    'a ViT of mmseg',
    r'layers\.\d+\.attn\.attn\.in_proj_weight',
    (
        ('blocks.#.attn.qkv.weight', 'layers.#.attn.attn.in_proj_weight'),
        ('blocks.#.attn.qkv.bias', 'layers.#.attn.attn.in_proj_bias'),
        *_through(
            TOKENS[:1] + TOKENS[3:] + NORMS[:2] + ATTENTION[:1] + ATTENTION[2:] + FFN,
            _MMPRETRAIN
            | {'norm_pre': 'ln_pre', 'blocks.#.attn.proj': 'layers.#.attn.attn.out_proj'},
        ),
    ),
)

SWIN = _same(
    [
        *('absolute_pos_embed', 'patch_embed.proj', 'patch_embed.norm', 'norm#'),
        *('layers.#.blocks.#.norm1', 'layers.#.blocks.#.norm2'),
        *('layers.#.blocks.#.attn.qkv', 'layers.#.blocks.#.attn.proj'),
        'layers.#.blocks.#.attn.relative_position_bias_table',
        *('layers.#.blocks.#.mlp.fc1', 'layers.#.blocks.#.mlp.fc2'),
        *('layers.#.downsample.reduction', 'layers.#.downsample.norm'),
    ]
)

TIMM_SWIN = Layout(
    'a Swin Transformer in the names of Microsoft and timm',
    r'layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight',
    (*SWIN, ('norm', 'norm')),
    after_reading=orders.tidy_swin,
)

OPENMMLAB_SWIN = Layout(
    'a Swin Transformer of mmpretrain or mmseg',
    r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight',
    _through(
        SWIN,
        {
            'patch_embed.proj': 'patch_embed.projection',
            'layers.#.blocks.#.norm1': 'stages.#.blocks.#.norm1',
            'layers.#.blocks.#.norm2': 'stages.#.blocks.#.norm2',
            'layers.#.blocks.#.attn.qkv': 'stages.#.blocks.#.attn.w_msa.qkv',
            'layers.#.blocks.#.attn.proj': 'stages.#.blocks.#.attn.w_msa.proj',
            'layers.#.blocks.#.attn.relative_position_bias_table': (
                'stages.#.blocks.#.attn.w_msa.relative_position_bias_table'
            ),
            'layers.#.blocks.#.mlp.fc1': 'stages.#.blocks.#.ffn.layers.0.0',
            'layers.#.blocks.#.mlp.fc2': 'stages.#.blocks.#.ffn.layers.1',
            'layers.#.downsample.reduction': 'stages.#.downsample.reduction',
            'layers.#.downsample.norm': 'stages.#.downsample.norm',
        },
    ),
    after_reading=orders.merging_from_unfold,
    before_writing=orders.merging_to_unfold,
)

_GOOGLE_BLOCK = 'Transformer/encoderblock_#/'
_GOOGLE_ATTENTION = _GOOGLE_BLOCK + 'MultiHeadDotProductAttention_1/'
_GOOGLE_MODULES = {
    'norm': 'Transformer/encoder_norm/',
    'blocks.#.norm1': _GOOGLE_BLOCK + 'LayerNorm_0/',
    'blocks.#.norm2': _GOOGLE_BLOCK + 'LayerNorm_2/',
    'patch_embed.proj': 'embedding/',
    'blocks.#.mlp.fc1': _GOOGLE_BLOCK + 'MlpBlock_3/Dense_0/',
    'blocks.#.mlp.fc2': _GOOGLE_BLOCK + 'MlpBlock_3/Dense_1/',
    'blocks.#.attn.proj': _GOOGLE_ATTENTION + 'out/',
    **{f'blocks.#.attn.{part}': f'{_GOOGLE_ATTENTION}{part}/' for part in orders.QKV},
}
GOOGLE_VIT = Layout(
    'a ViT of Google (.npz)',
    r'Transformer/encoderblock_\d+/MultiHeadDotProductAttention_1/query/kernel',
    (
        ('cls_token', 'cls'),
        ('pos_embed', 'Transformer/posembed_input/pos_embedding'),
        *((f'{common}.bias', f'{own}bias') for common, own in _GOOGLE_MODULES.items()),
        *((f'{common}.weight', f'{own}kernel') for common, own in _GOOGLE_MODULES.items()),
        *((f'{common}.weight', f'{own}scale') for common, own in _GOOGLE_MODULES.items()),
    ),
    after_reading=orders.from_jax,
)

# BEiT before the plain ViT, whose mark it bears too.
LAYOUTS = (
    TIMM_VIT,
    OPENMMLAB_BEIT,
    OPENMMLAB_VIT,
    MMSEG_VIT,
    TIMM_SWIN,
    OPENMMLAB_SWIN,
    GOOGLE_VIT,
)
