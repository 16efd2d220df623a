"""``nn.MultiheadAttention`` with adapters: one product for q, k and v, and torch's own results."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn

from cdra_mm.core import apply_plan, plan_from_masks
from cdra_mm.core.adapters import layers
from cdra_mm.core.model import attention as attentions
from cdra_mm.core.model.attention import attend
from tests.core.problems import move

E, HEADS = 12, 3


def adapted_attention(*, out_proj=True, **options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, HEADS, dtype=torch.float64, **options)
    model = nn.Module()
    model.attn = attention
    generator = torch.Generator().manual_seed(0)
    names = [f'attn.in_proj_weight:{part}' for part in 'qkv']
    names += ['attn.out_proj.weight'] if out_proj else []
    masks = {name: torch.rand(E, E, generator=generator) < 0.05 for name in names}
    masks['attn.in_proj_bias'] = torch.arange(3 * E) == 4
    apply_plan(model, plan_from_masks(masks, rank_rule=2))
    move(model)
    return attention


def by_torch(attention, *args, **kwargs):
    """What torch's own forward says with the effective weights."""
    names = ('in_proj_weight', 'in_proj_bias')
    state = {name: getattr(attention, name) for name in names}
    state |= {f'out_proj.{name}': getattr(attention.out_proj, name) for name in ('weight', 'bias')}
    plain = nn.MultiheadAttention(
        E, HEADS, dropout=attention.dropout, batch_first=attention.batch_first, dtype=torch.float64
    ).train(attention.training)
    return torch.func.functional_call(plain, state, args, kwargs)


def outcome(result, attention):
    """Output, weights, and the gradients of everything that is trained."""
    out, weights = result
    trained = [p for p in attention.parameters() if p.requires_grad]
    loss = out.square().sum() + (0 if weights is None else weights.square().sum())
    return [out, weights, *torch.autograd.grad(loss, trained, allow_unused=True)]


@pytest.mark.parametrize('batch_first', [False, True])
@pytest.mark.parametrize('need_weights', [False, True])
@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('out_proj', [False, True])
def test_attention_equals_torch_on_effective_weights(batch_first, need_weights, average, out_proj):
    attention = adapted_attention(batch_first=batch_first, out_proj=out_proj)
    x = torch.randn(2, 5, E, dtype=torch.float64)
    options = {'need_weights': need_weights, 'average_attn_weights': average}
    torch.testing.assert_close(
        outcome(attention(x, x, x, **options), attention),
        outcome(by_torch(attention, x, x, x, **options), attention),
    )


@pytest.mark.parametrize('need_weights', [False, True])
def test_attention_drops_weights_while_training_only(need_weights):
    """The mean over draws is the output without dropping."""
    attention = adapted_attention(dropout=0.5, batch_first=True).train()
    x = torch.randn(1, 5, E, dtype=torch.float64).expand(4000, -1, -1)
    torch.manual_seed(1)
    drawn = attention(x, x, x, need_weights=need_weights)[0]
    kept = attention.eval()(x, x, x, need_weights=need_weights)[0]
    assert bool((kept == kept[0]).all())
    deviation = drawn.std(0)
    assert bool((deviation > 0.01).all())
    assert bool(((drawn.mean(0) - kept[0]).abs() < 6 * deviation / 4000**0.5).all())


NOT_OURS = patch.object(
    attentions, 'attend_to_itself', side_effect=AssertionError('our own attention')
)
ODD = {
    'cross attention': lambda x: ((x, x * 2, x * 3), {}),
    'a mask': lambda x: ((x, x, x), {'attn_mask': torch.ones(5, 5).tril() == 0}),
    'padding': lambda x: ((x, x, x), {'key_padding_mask': torch.arange(10).view(2, 5) == 3}),
    'no batch': lambda x: ((x[0],) * 3, {}),
}


@pytest.mark.parametrize('kind', ODD)
def test_attention_out_of_the_ordinary_is_left_to_torch(kind):
    attention = adapted_attention(batch_first=True)
    args, options = ODD[kind](torch.randn(2, 5, E, dtype=torch.float64))
    with NOT_OURS:
        actual = outcome(attention(*args, **options), attention)
    torch.testing.assert_close(actual, outcome(by_torch(attention, *args, **options), attention))


@pytest.mark.parametrize('option', ['add_zero_attn', 'add_bias_kv'])
def test_attention_with_further_tokens_is_left_to_torch(option):
    attention = adapted_attention(**{option: True})
    x = torch.randn(5, 2, E, dtype=torch.float64)
    with NOT_OURS:
        out, weights = attention(x, x, x)
    assert out.shape == x.shape
    assert weights.shape == (2, 5, 6)


def test_projections_share_one_product_and_the_weight_gets_no_gradient():
    attention = adapted_attention(batch_first=True)
    x = torch.randn(2, 5, E, dtype=torch.float64)
    with patch.object(layers, 'compact_linear', wraps=layers.compact_linear) as product:
        out, _ = attention(x, x, x)
    assert [len(call.args[3]) for call in product.call_args_list] == [3, 1]
    with patch.object(layers.LowRank, 'added_to', side_effect=AssertionError('a dense weight')):
        out.sum().backward()


@pytest.mark.parametrize('need_weights', [False, True])
def test_attend_gives_weights_that_sum_to_one(need_weights):
    q, k, v = torch.randn(3, 2, 5, E)
    out, weights = attend(q, k, v, HEADS, need_weights=need_weights)
    assert out.shape == (2, 5, E)
    if need_weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    else:
        assert weights is None
