"""What lies between the projections of ``nn.MultiheadAttention``, for projections of our own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['attend']


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    *,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    average_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention over heads, as ``F.multi_head_attention_forward`` does it.

    Args:
        q: Projected queries ``[B, T, E]``.
        k: Projected keys ``[B, S, E]``.
        v: Projected values ``[B, S, E]``.
        num_heads: Heads that E is divided into.
        dropout_p: Probability with which an attention weight is dropped.
        need_weights: Whether to return the attention weights; without them torch
            may take a fused kernel.
        average_weights: Whether they are averaged over heads.

    Returns:
        Output ``[B, T, E]``; weights ``[B, T, S]`` or ``[B, heads, T, S]``, or None.
    """
    q, k, v = (t.reshape(*t.shape[:2], num_heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = None
    if need_weights:
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        weights = F.dropout(weights, dropout_p)
        out = weights @ v
        weights = weights.mean(1) if average_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    return out.transpose(1, 2).flatten(2), weights
