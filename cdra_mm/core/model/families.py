"""Where each family of transformers holds its weights: one table, one entry a family.

Everything else in this package asks the table. Plain linear layers and norms need no
entry: a block's ``nn.Linear`` and ``nn.LayerNorm`` are found wherever they are, and
so is a layer scale, a leaf module that holds one vector. An entry says what those rules
cannot see: which module is an attention (blocks are found by it), which matrix is several
in one, which bare vector of a module competes, and what has no samples to be scored with.
A project with a backbone of its own appends an entry: ``FAMILIES.append(Family(...))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import nn

__all__ = ['FAMILIES', 'GATED', 'QKV', 'Family', 'families_of']

QKV = ('q', 'k', 'v')
GATED = ('w1', 'w2')  # SwiGLU: w3(silu(w1 x) * w2 x)


@dataclass(frozen=True)
class Family:
    """How one kind of module holds its weights.

    Attributes:
        models: Which models have such modules, for the reader.
        owns: Whether a module is of this kind.
        width: Of an attention: the width E of its tokens. It marks the module as one.
        fused: Fused matrices by their path below the module, with their parts top to bottom.
        vectors: The module's own 1-D parameters that compete, with their roles. Each must be
            used as `watched_uses` understands it: as a factor of the last dimension, or
            joined into the bias of a linear layer.
        excluded: Children whose weights do not compete, because they see no sample.
    """

    models: str
    owns: Callable[[nn.Module], bool]
    width: Callable[[nn.Module], int] | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()


def _linear(module: nn.Module, name: str) -> nn.Linear | None:
    child = module._modules.get(name)
    return child if isinstance(child, nn.Linear) else None


def _fused_qkv(module: nn.Module) -> bool:
    qkv = _linear(module, 'qkv')
    is_triple = qkv is not None and qkv.out_features == 3 * qkv.in_features
    return is_triple and not _joined_by_head(module)


def _joined_by_head(module: nn.Module) -> bool:
    """Whether the rows of a fused matrix go head by head: no run of them is q, k or v alone."""
    has_table = isinstance(module._parameters.get('attention_biases'), nn.Parameter)
    return has_table and isinstance(getattr(module, 'key_dim', None), int)


def _joined_width(module: nn.Module) -> int:
    """In features of the fused matrix, which may stand in a layer with a norm."""
    fused = module._modules.get('qkv') or module._modules.get('kv')
    linears = (m for m in fused.modules() if isinstance(m, nn.Linear)) if fused else iter(())
    return next((linear.in_features for linear in linears), 0)


def _linears(*names: str) -> Callable[[nn.Module], bool]:
    return lambda module: all(_linear(module, name) is not None for name in names)


def _q_and_kv(q_name: str, kv_name: str) -> Callable[[nn.Module], bool]:
    def owns(module: nn.Module) -> bool:
        q, kv = _linear(module, q_name), _linear(module, kv_name)
        return q is not None and kv is not None and kv.out_features == 2 * q.out_features

    return owns


def _in_three(name: str) -> Callable[[nn.Module], bool]:
    """A fused matrix whose parts need not be as wide as the tokens."""

    def owns(module: nn.Module) -> bool:
        fused = _linear(module, name)
        return fused is not None and fused.out_features % 3 == 0

    return owns


def _gated(first: str, last: str) -> Callable[[nn.Module], bool]:
    """A pair of linear layers whose first makes twice what the last takes."""

    def owns(module: nn.Module) -> bool:
        a, b = _linear(module, first), _linear(module, last)
        return a is not None and b is not None and a.out_features == 2 * b.in_features

    return owns


def _holds_vector(module: nn.Module, name: str) -> bool:
    parameter = module._parameters.get(name)
    return parameter is not None and parameter.dim() == 1


def _in_features(name: str) -> Callable[[nn.Module], int]:
    return lambda module: cast(nn.Linear, module._modules[name]).in_features


FAMILIES: list[Family] = [
    Family(
        'mmpretrain ViT, DeiT, DINOv2, MAE; timm ViT, DINOv2, DINOv3; Swin of all three',
        owns=_fused_qkv,
        width=_in_features('qkv'),
        fused={'qkv.weight': QKV},
    ),
    Family(
        'mmseg ViT; torch.nn.TransformerEncoder',
        owns=lambda module: isinstance(module, nn.MultiheadAttention),
        width=lambda module: int(cast(nn.MultiheadAttention, module).embed_dim),
        fused={'in_proj_weight': QKV},
        vectors={'in_proj_bias': 'bias'},
    ),
    Family(
        'EVA-02 without a fused qkv (timm); Hugging Face style attention',
        owns=_linears('q_proj', 'k_proj', 'v_proj'),
        width=_in_features('q_proj'),
    ),
    Family('attention with q, k and v apart', owns=_linears(*QKV), width=_in_features('q')),
    Family(
        # Keys and values are those of a smaller map.
        'PVT and Twins of mmpretrain and timm',
        owns=_q_and_kv('q', 'kv'),
        width=_in_features('q'),
        fused={'kv.weight': QKV[1:]},
    ),
    Family(
        'vit-pytorch and what follows it, CROMA of torchgeo',
        owns=_in_three('to_qkv'),
        width=_in_features('to_qkv'),
        fused={'to_qkv.weight': QKV},
    ),
    Family(
        'cross attention of CROMA and MONAI; attention of diffusers',
        owns=_linears('to_q', 'to_k', 'to_v'),
        width=_in_features('to_q'),
    ),
    Family(
        'cross attention of vit-pytorch',
        owns=_q_and_kv('to_q', 'to_kv'),
        width=_in_features('to_q'),
        fused={'to_kv.weight': QKV[1:]},
    ),
    Family(
        # Joined around zeros into the bias of a functional product with qkv.weight.
        'BEiT of mmpretrain, mmseg and timm; EVA, EVA-02 (timm); Swin v2',
        owns=lambda module: _fused_qkv(module) and _holds_vector(module, 'q_bias'),
        vectors={'q_bias': 'bias', 'v_bias': 'bias'},
    ),
    Family(
        # Factors of the two branches' outputs, held by the block itself.
        'blocks of BEiT (mmpretrain, mmseg, timm) and of EVA, DINOv3 (timm)',
        owns=lambda module: 'attn' in module._modules and _holds_vector(module, 'gamma_1'),
        vectors={'gamma_1': 'scale', 'gamma_2': 'scale'},
    ),
    Family(
        # A small network that maps a table of offsets, the same for every image.
        'Swin v2: attention with a network for relative positions',
        owns=lambda module: _fused_qkv(module) and 'cpb_mlp' in module._modules,
        excluded=('cpb_mlp',),
    ),
    Family(
        # A layer with a norm holds its matrix as `linear`.
        'TinyViT, LeViT of mmpretrain and timm',
        owns=_joined_by_head,
        width=_joined_width,
        fused={
            'qkv.weight': ('qkv',),
            'qkv.linear.weight': ('qkv',),
            'kv.linear.weight': ('kv',),
        },
    ),
    Family(
        'DINOv2 giant of mmpretrain and of facebookresearch: SwiGLU',
        owns=_gated('w12', 'w3'),
        fused={'w12.weight': GATED},
    ),
    Family(
        'DINOv2 giant and EVA-02 of timm: packed SwiGLU',
        owns=_gated('fc1', 'fc2'),
        fused={'fc1.weight': GATED},
    ),
]


def families_of(module: nn.Module, having: str = '') -> Iterator[Family]:
    """The entries of the table that a module belongs to.

    Args:
        module: The module.
        having: Of those alone that have this attribute of `Family`; the others are not asked.
    """
    asked = (family for family in FAMILIES if not having or getattr(family, having))
    return (family for family in asked if family.owns(module))
