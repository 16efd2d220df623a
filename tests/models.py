"""Tiny vision transformers in plain torch, one for each way that real ones hold their weights.

All are seeded by the caller, have dropout and drop-path above zero (so that a scorer that
forgets to switch them off is caught), a convolution in front, and no parameter at a symmetric
value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Drops a residual branch of whole samples while training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * (torch.rand(shape, device=x.device) >= self.probability).to(x.dtype)


class LayerScale(nn.Module):
    """Multiplies each channel by a learnt factor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention with one fused ``qkv`` weight ``[3E, E]``."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def bias(self) -> Tensor | float:
        """What is added to the attention logits."""
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        b, n, e = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, e // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1) * (e // self.num_heads) ** -0.5 + self.bias()
        x = self.attn_drop(logits.softmax(-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, e)))


class WindowAttention(Attention):
    """As above over the tokens of a window, with a table of relative position biases."""

    def __init__(self, dim: int, num_heads: int, window: int, drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, drop)
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.randn(side * side, num_heads))
        grid = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = grid[:, None] - grid[None] + window - 1
        self.register_buffer('relative_position_index', offset[..., 0] * side + offset[..., 1])

    def bias(self) -> Tensor:
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class SequenceAttention(nn.Module):
    """nn.MultiheadAttention as detection and segmentation code wraps it."""

    def __init__(self, dim: int, num_heads: int, drop: float, batch_first: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, drop, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn.batch_first:
            return self.attn(x, x, x, need_weights=False)[0]
        x = x.transpose(0, 1)
        return self.attn(x, x, x, need_weights=False)[0].transpose(0, 1)


class Mlp(nn.Module):
    """The usual two-layer FFN."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwiGLU(nn.Module):
    """The gated FFN of DINOv2 giant: ``w3(silu(w1 x) * w2 x)``, w1 and w2 fused in ``w12``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block with layer scale and drop path."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.ls2 = LayerScale(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class WindowBlock(nn.Module):
    """Swin-like block on ``[B, H, W, E]``: its attention sees ``B x windows`` samples."""

    def __init__(self, dim: int, window: int, shift: int, drop: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, 2, window, drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 2 * dim, drop)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, e = x.shape
        s = self.window
        y = self.norm1(x).roll((-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // s, s, w // s, s, e).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, e)
        y = self.attn(y).view(b, h // s, w // s, s, s, e).permute(0, 1, 3, 2, 4, 5)
        x = x + self.drop_path(y.reshape(b, h, w, e).roll((self.shift, self.shift), (1, 2)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halves the grid and doubles the width, between two stages."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.reduction(torch.cat(parts, -1))


class TinyViT(nn.Module):
    """Images ``[B, 3, 8, 8]`` to logits ``[B, 3]``.

    Args:
        ffn: ``'mlp'`` or ``'swiglu'``.
        attention: ``'fused'``, ``'mha'`` (batch first) or ``'mha_sequence'`` (tokens first).
        batch_norm: A batch norm behind the patch embedding, with running statistics to keep.
    """

    def __init__(
        self,
        ffn: str = 'mlp',
        attention: str = 'fused',
        *,
        dim: int = 8,
        hidden: int = 16,
        depth: int = 2,
        classes: int = 3,
        drop: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.stem = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, dim))

        def attn() -> nn.Module:
            if attention == 'fused':
                return Attention(dim, 2, drop)
            return SequenceAttention(dim, 2, drop, batch_first=attention == 'mha')

        def mlp() -> nn.Module:
            return SwiGLU(dim, hidden) if ffn == 'swiglu' else Mlp(dim, hidden, drop)

        self.blocks = nn.ModuleList(Block(dim, attn(), mlp(), drop) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        spread(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.patch_embed(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TinySwin(nn.Module):
    """Images ``[B, 3, 8, 8]`` to logits ``[B, 3]`` through two stages of windowed blocks."""

    def __init__(self, dim: int = 8, classes: int = 3, drop: float = 0.2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 2, 2)
        first = [WindowBlock(dim, 2, shift, drop) for shift in (0, 1)]
        self.stages = nn.ModuleList(
            nn.ModuleDict({'blocks': nn.ModuleList(blocks)})
            for blocks in (first, [WindowBlock(2 * dim, 2, 0, drop)])
        )
        self.downsample = PatchMerging(dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, classes)
        spread(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for block in self.stages[0]['blocks']:
            x = block(x)
        x = self.downsample(x)
        for block in self.stages[1]['blocks']:
            x = block(x)
        return self.head(self.norm(x).mean((1, 2)))


def spread(model: nn.Module) -> None:
    """Adds noise to every parameter, so that no two are equal and none is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


MODELS = {
    'fused': lambda: TinyViT(),
    'swiglu': lambda: TinyViT(ffn='swiglu'),
    'mha': lambda: TinyViT(attention='mha'),
    'mha_sequence': lambda: TinyViT(attention='mha_sequence'),
    'windowed': lambda: TinySwin(),
}
"""Every way of holding the weights, by name: a function that builds a fresh, random model."""


def images(count: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> tuple[Tensor, Tensor]:
    """A batch of ``count`` random images ``[B, 3, 8, 8]`` and labels ``[B]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (count,), generator=generator)


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Per-sample losses ``[B]`` of a batch."""
    x, labels = batch
    return F.cross_entropy(model(x), labels, reduction='none')


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """The batch's mean loss and its number of samples, as a framework's own loss gives them."""
    return losses(model, batch).mean(), len(batch[1])
