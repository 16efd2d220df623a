"""What lies between the projections of ``nn.MultiheadAttention``, for projections of our own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ['attend', 'attend_to_itself', 'attention_forward', 'is_plain_attention']

# A module and its input ``[..., E]`` to the projected q, k and v, ``[..., 3 E]``.
Projection = Callable[[nn.MultiheadAttention, Tensor], Tensor]


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


def is_plain_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> bool:
    """Whether a call of ``nn.MultiheadAttention`` is what `attend_to_itself` computes."""
    return (
        query is key is value
        and query.dim() == 3
        and module._parameters['in_proj_weight'] is not None
        and key_padding_mask is attn_mask is module.bias_k is module.bias_v is None
        and not (is_causal or module.add_zero_attn)
    )


def attend_to_itself(
    module: nn.MultiheadAttention,
    x: Tensor,
    project: Callable[[Tensor], Tensor],
    need_weights: bool,
    average_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """What ``nn.MultiheadAttention`` computes of one input, by one product for q, k and v.

    Args:
        module: The module.
        x: ``[B, T, E]``, or ``[T, B, E]`` where it is not ``batch_first``.
        project: ``[B, T, E]`` to ``[B, T, 3 E]``.
        need_weights: See `attend`.
        average_weights: See `attend`.
    """
    x = x if module.batch_first else x.transpose(0, 1)
    q, k, v = project(x).chunk(3, -1)
    out, weights = attend(
        q,
        k,
        v,
        module.num_heads,
        dropout_p=module.dropout if module.training else 0.0,
        need_weights=need_weights,
        average_weights=average_weights,
    )
    out = cast(Tensor, module.out_proj(out))
    return out if module.batch_first else out.transpose(0, 1), weights


def attention_forward(
    project: Projection, *, without_gradients: bool
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A forward of ``nn.MultiheadAttention``: of one input by one product for q, k and v.

    What is not plain (`is_plain_attention`) goes through torch's own forward.

    Args:
        project: See `Projection`.
        without_gradients: Whether it is used without gradients too, where torch has kernels of its
            own.
    """

    def forward(
        module: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        is_plain = is_plain_attention(
            module, query, key, value, key_padding_mask, attn_mask, is_causal
        )
        if not is_plain or not (without_gradients or torch.is_grad_enabled()):
            own = cast(Any, nn.MultiheadAttention.forward)
            masks = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return cast('tuple[Tensor, Tensor | None]', own(module, query, key, value, *masks))
        product = functools.partial(project, module)
        return attend_to_itself(module, query, product, need_weights, average_attn_weights)

    return forward
