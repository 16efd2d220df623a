"""Weights used in other ways than by calling their layer: scored right, at once or one by one.

Never a wrong number: a backbone written another way must not silently get a meaningless plan.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cdra_mm.core import ScoreError, estimate_scores, find_targets
from tests.core.scoring.test_scores import assert_scores, split
from tests.models import Block, Mlp, TinyViT, losses
from tests.reference.scores import magnitude_of_mean, mean_squares, one_by_one


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


@torch.jit.script
def scripted(x, weight, bias):
    return torch.matmul(x, weight.t()) + bias


class OwnLinear(torch.autograd.Function):
    """As a fused kernel of an extension: torch functions never see the weight."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, torch.einsum('bno,bni->oi', grad, x), grad.sum((0, 1))


def scripted_forward(self, x):
    return scripted(x, self.weight, self.bias)


def own_forward(self, x):
    return OwnLinear.apply(x, self.weight, self.bias)


def partly_scripted_forward(self, x):
    """One use is seen, the other is not."""
    return F.linear(x, self.weight, self.bias) + scripted(x, self.weight, self.bias)


def computed_bias_forward(self, x):
    """The weight is used as ever; what its bias is made of must not be lost."""
    return F.linear(x, self.weight, self.bias.exp())


FORWARDS = [
    matmul_forward,
    scaled_forward,
    normed_forward,
    keyword_forward,
    copied_forward,
    einsum_forward,
    addmm_forward,
    stacked_forward,
    computed_bias_forward,
    scripted_forward,
    own_forward,
    partly_scripted_forward,
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


def assert_right(model, name, loss_fn=losses, sizes=(4, 3), rtol=1e-5):
    """Scores equal the oracle's, of all statistics, whatever was scored one by one.

    What cannot be told from a mean loss is refused by name.
    """
    batches = split(list(sizes), next(model.parameters()).dtype)
    targets = find_targets(model)
    expected = mean_squares(model, one_by_one(batches), loss_fn, targets)
    told = []
    assert_scores(estimate_scores(model, batches, loss_fn, warn=told.append), expected, rtol)
    expected = mean_squares(model, batches, loss_fn, targets)
    scores = estimate_scores(model, batches, loss_fn, statistic='per_batch', warn=told.append)
    assert_scores(scores, expected, rtol)
    expected = magnitude_of_mean(model, batches, loss_fn, targets)
    scores = estimate_scores(model, batches, loss_fn, statistic='summed', warn=told.append)
    assert_scores(scores, expected, rtol)

    def mean(model, batch):
        return loss_fn(model, batch).mean(), len(batch[1])

    if any(name in line for line in told):
        with pytest.raises(ScoreError, match=f'{name}.*losses of the samples'):
            estimate_scores(model, batches, mean)
    assert len(told) <= 3  # one for each statistic
    return told


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
    assert_right(either, 'fc1')


def test_scores_of_a_weight_that_the_loss_reads(either):
    assert_right(either, 'fc1', with_penalty)


@pytest.mark.parametrize('forward', SCALES, ids=lambda f: f.__name__)
def test_scores_of_a_layer_scale_written_in_another_way(either, forward):
    rewrite(either.blocks[0].ls1, forward)
    assert_right(either, 'ls1')


def test_scores_of_a_linear_on_a_table_without_samples(model):
    """As Swin-v2's position bias network: its input has no sample dimension."""
    mlp = model.blocks[0].mlp
    mlp.spare = nn.Linear(8, 8).double()
    mlp.register_buffer('table', torch.randn(1, 4, 8, dtype=torch.float64))
    rewrite(mlp, table_forward)
    assert_right(model, 'spare')


def test_scores_with_activation_checkpointing(either):
    for block in either.blocks:
        rewrite(block, checkpointed_forward)
    with pytest.raises(ScoreError, match='checkpointing'):
        estimate_scores(either, split([4, 3]), losses)


@pytest.mark.parametrize(
    'forward', [cross_forward, masked_forward, weights_forward], ids=lambda f: f.__name__
)
def test_scores_of_attention_used_in_another_way(forward):
    model = TinyViT(attention='mha')
    rewrite(model.blocks[0].attn, forward)
    assert_right(model.double(), 'attn.in_proj_weight')


@pytest.mark.parametrize('forward', [scripted_forward, own_forward], ids=lambda f: f.__name__)
def test_scores_of_what_torch_functions_do_not_see_in_fp32(forward):
    model = TinyViT()
    rewrite(model.blocks[1].mlp.fc1, forward)
    told = assert_right(model, 'fc1', rtol=1e-4)
    assert all('2 of 28 parameters' in line and 'past torch functions' in line for line in told)


def test_scores_where_a_joined_bias_is_used_in_another_way(model):
    """The parts of a bias that is left alone still get their gradient beside a scored weight."""
    attn = model.blocks[0].attn
    attn.q_bias, attn.v_bias = (nn.Parameter(torch.randn(8).double()) for _ in range(2))

    def forward(x):
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
        b, n, e = x.shape
        q, k, v = F.linear(x, attn.qkv.weight, bias * 2).chunk(3, -1)
        return attn.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)

    attn.forward = forward
    names = ['blocks.0.attn.q_bias', 'blocks.0.attn.v_bias', 'blocks.0.attn.qkv.weight:v']
    batches = split([4, 3])
    expected = {name: 0 for name in names}
    parameters = dict(model.eval().named_parameters())
    for batch in one_by_one(batches):
        loss = losses(model, batch).sum()
        for name in names:
            grad = torch.autograd.grad(loss, parameters[name.split(':')[0]], retain_graph=True)[0]
            expected[name] = expected[name] + (grad[-8:] ** 2) / 7
    assert_scores(estimate_scores(model, batches, losses, targets=names, warn=str), expected)


def test_scores_of_a_weight_used_twice(model):
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    assert not any(name.startswith('blocks.1.mlp.fc1') for name in find_targets(model))
    line, *_ = assert_right(model, 'blocks.0.mlp.fc1.weight')
    assert 'blocks.0.mlp.fc1.weight, blocks.0.mlp.fc1.bias (used twice in one forward)' in line


def test_scores_of_a_loss_that_runs_the_model_twice(model):
    def twice(model, batch):
        return losses(model, batch) + losses(model, (batch[0].flip(-1), batch[1]))

    assert_right(model, 'blocks.0.norm1.weight', twice)


@pytest.mark.parametrize('batch', [0, 1])
def test_scores_of_a_weight_that_one_batch_uses_in_another_way(model, batch):
    """What other batches have added stays, and nothing is counted twice."""
    seen = []

    def sometimes(model, data):
        seen.append(len(data[1]))
        loss = losses(model, data)
        return loss + model.blocks[0].mlp.fc1.weight.pow(2).sum() * (len(data[1]) == sizes[batch])

    sizes = (4, 3)
    batches = split(list(sizes))
    parameter = dict(model.named_parameters())['blocks.0.mlp.fc1.weight']
    expected = 0
    for x, y in batches:
        loss = sometimes(model.eval(), (x, y))
        for n in range(len(y)):
            expected = expected + torch.autograd.grad(loss[n], parameter, retain_graph=True)[0] ** 2
    seen.clear()
    told = []
    scores = estimate_scores(model, batches, sometimes, warn=told.append)
    assert len(told) == 1
    assert_scores({'w': scores['blocks.0.mlp.fc1.weight']}, {'w': expected.detach() / 7})


def test_scores_refuse_what_only_a_later_batch_uses_past_the_watch(model):
    def later(model, data):
        loss = losses(model, data)
        fc1 = model.blocks[0].mlp.fc1
        past = scripted(torch.ones(1, 8).double(), fc1.weight, fc1.bias).sum()
        return loss + past * 1 if len(data[1]) == 3 else loss

    with pytest.raises(ScoreError, match=r'blocks\.0\.mlp\.fc1\.weight.*not so in the first batch'):
        estimate_scores(model, split([4, 3]), later)


def test_scores_of_a_parameter_that_two_modules_share(model):
    """It competes under its first name; under each it gets the gradient of the parameter."""
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    assert [n for n in find_targets(model) if 'fc1.weight' in n] == ['blocks.0.mlp.fc1.weight']
    batches = split([4, 3])
    names = ['blocks.0.mlp.fc1.weight', 'blocks.1.mlp.fc1.weight', 'head.weight']
    scores = estimate_scores(model, batches, losses, targets=names, warn=str)
    expected = mean_squares(model, one_by_one(batches), losses, [names[0], names[2]])
    assert_scores(scores, {name: expected.get(name, expected[names[0]]) for name in names})


def test_scores_warn_by_default(model):
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.warns(UserWarning, match=r'2 of 26 parameters .* one sample at a time') as caught:
        estimate_scores(model, split([4, 3]), losses)
    assert caught[0].filename == __file__


def test_scores_one_by_one_name_the_sample_with_a_gradient_that_is_not_finite(model):
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    names = ['blocks.0.mlp.fc1.weight']

    def rooted(model, batch):
        kept = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()
        return (model(batch[0]).sum(-1) * kept).abs().sqrt()

    def steep(model, batch):
        """The gradient of sample 2 overflows, the others' do not."""
        factors = torch.tensor([1.0, 1.0, 1e300, 1.0], dtype=torch.float64)
        logits = model(batch[0]).sum(-1)
        return ((logits - logits.detach()) * factors) * factors

    for loss_fn, which, sample in (
        (rooted, 'one of the samples 0 to 3', None),
        (steep, 'sample 2', 2),
    ):
        with pytest.raises(ScoreError, match=f'gradient of {which} is not finite') as error:
            estimate_scores(model, split([4]), loss_fn, targets=names, warn=str)
        assert error.value.sample == sample


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
