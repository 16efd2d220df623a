"""Weights used in other ways than by calling their layer: scored right, or refused by name.

Never a wrong number: a backbone written another way must not silently get a meaningless plan.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import ScoreError, estimate_scores, find_targets
from tests.core.test_scores import assert_scores, split
from tests.models import Block, Mlp, TinyViT, losses
from tests.reference.scores import mean_squares, one_by_one


def with_penalty(model, batch):
    return losses(model, batch) + 0.3 * model.blocks[0].mlp.fc1.weight.pow(2).sum()


def matmul_forward(self, x):
    return x @ self.weight.t() + self.bias


def scaled_forward(self, x):
    return F.linear(x, self.weight * 2.0, self.bias)


def normed_forward(self, x):
    return F.linear(x, F.normalize(self.weight), self.bias)


def keyword_forward(self, x):
    return F.linear(input=x, weight=self.weight, bias=self.bias)


def copied_forward(self, x):
    return F.linear(x, self.weight.clone(), self.bias)


def einsum_forward(self, x):
    return torch.einsum('bnc,oc->bno', x, self.weight) + self.bias


def addmm_forward(self, x):
    flat = torch.addmm(self.bias, x.flatten(0, 1), self.weight.t())
    return flat.view(*x.shape[:2], -1)


def stacked_forward(self, x):
    weight = torch.cat([self.weight[:4], self.weight[4:]])
    return F.linear(x, weight, torch.cat([self.bias[:1], self.bias[1:]]))


FORWARDS = [
    matmul_forward,
    scaled_forward,
    normed_forward,
    keyword_forward,
    copied_forward,
    einsum_forward,
    addmm_forward,
    stacked_forward,
]


def in_place(self, x):
    return x.clone().mul_(self.gamma)


def augmented(self, x):
    x = x.clone()
    x *= self.gamma
    return x


def reversed_product(self, x):
    return self.gamma * x


def as_function(self, x):
    return torch.mul(x, self.gamma)


def as_einsum(self, x):
    return torch.einsum('bnc,c->bnc', x, self.gamma)


def shaped(self, x):
    return x * self.gamma.view(1, 1, -1)


def added(self, x):
    return torch.addcmul(torch.zeros_like(x), x, self.gamma)


SCALES = [in_place, augmented, reversed_product, as_function, as_einsum, shaped, added]


def table_forward(self, x):
    return Mlp.forward(self, x) + self.spare(self.table).mean((0, 1))


def checkpointed_forward(self, x):
    return checkpoint(lambda x: Block.forward(self, x), x, use_reentrant=False)


def cross_forward(self, x):
    return self.attn(x, x.roll(1, 1), x.roll(2, 1), need_weights=False)[0]


def masked_forward(self, x):
    mask = torch.full((5, 5), -1e9, dtype=x.dtype).triu(1)
    return self.attn(x, x, x, attn_mask=mask, need_weights=False)[0]


def weights_forward(self, x):
    y, weights = self.attn(x, x, x, need_weights=True)
    return y + weights @ x


def rewrite(module, forward):
    """Gives one module another forward; a copy of the module keeps it."""
    module.forward = forward.__get__(module)


def right_or_refused(model, match, loss_fn=losses):
    """Scores equal the oracle's, or a ScoreError names the weight."""
    batches = split([4, 3])
    expected = mean_squares(model, one_by_one(batches), loss_fn, find_targets(model))
    try:
        scores = estimate_scores(model, batches, loss_fn)
    except ScoreError as error:
        assert match in str(error)
    else:
        assert_scores(scores, expected)


@pytest.fixture
def model():
    return TinyViT().double()


@pytest.fixture(params=[False, True], ids=['trainable', 'frozen'])
def either(request, model):
    """A model whose weights require gradients, or none: the usual state of a backbone."""
    return model.requires_grad_(not request.param)


@pytest.mark.parametrize('forward', FORWARDS, ids=lambda f: f.__name__)
def test_scores_of_a_linear_used_in_another_way(either, forward):
    rewrite(either.blocks[0].mlp.fc1, forward)
    right_or_refused(either, 'fc1')


def test_scores_of_a_weight_that_the_loss_reads(either):
    right_or_refused(either, 'fc1', with_penalty)


@pytest.mark.parametrize('forward', SCALES, ids=lambda f: f.__name__)
def test_scores_of_a_layer_scale_written_in_another_way(either, forward):
    rewrite(either.blocks[0].ls1, forward)
    right_or_refused(either, 'ls1')


def test_scores_of_a_linear_on_a_table_without_samples(model):
    """As Swin-v2's position bias network: its input has no sample dimension."""
    mlp = model.blocks[0].mlp
    mlp.spare = nn.Linear(8, 8).double()
    mlp.register_buffer('table', torch.randn(1, 4, 8, dtype=torch.float64))
    rewrite(mlp, table_forward)
    right_or_refused(model, 'spare')


def test_scores_with_activation_checkpointing(either):
    for block in either.blocks:
        rewrite(block, checkpointed_forward)
    right_or_refused(either, 'checkpoint')


@pytest.mark.parametrize(
    'forward', [cross_forward, masked_forward, weights_forward], ids=lambda f: f.__name__
)
def test_scores_of_attention_used_in_another_way(forward):
    model = TinyViT(attention='mha')
    rewrite(model.blocks[0].attn, forward)
    right_or_refused(model.double(), 'MultiheadAttention')


def test_scores_of_torchs_own_encoder():
    """It has a fast path in eval mode that never calls its layers."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    batches = [(torch.randn(n, 4, 8).double(), torch.zeros(n)) for n in (4, 3)]

    def loss_fn(model, batch):
        return model(batch[0]).pow(3).flatten(1).sum(1)

    expected = mean_squares(model, one_by_one(batches), loss_fn, find_targets(model))
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        assert_scores(estimate_scores(model, batches, loss_fn), expected)
