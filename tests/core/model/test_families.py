"""The table of families: bare vectors, joined biases, and what a new family takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.core import (
    PlanError,
    apply_plan,
    estimate_scores,
    find_targets,
    merge_adapters,
    plan_from_masks,
)
from cdra_mm.core.model.families import FAMILIES, Family
from tests.core.problems import move
from tests.core.scoring.test_scores import assert_scores
from tests.models import images, losses, spread
from tests.reference.layers import dense_state
from tests.reference.scores import mean_squares, one_by_one


class SplitBiasAttention(nn.Module):
    """BEiT's way: a fused qkv without bias, those of q and v apart, used functionally."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def bias(self) -> Tensor:
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv.weight, self.bias())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return self.proj(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


class ScaledBlock(nn.Module):
    """A block that holds its layer scales itself."""

    def __init__(self, dim: int, attn: nn.Module, normalisation: type[nn.Module]) -> None:
        super().__init__()
        self.norm1 = normalisation(dim)
        self.attn = attn
        self.norm2 = normalisation(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 12), nn.GELU(), nn.Linear(12, dim))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class Model(nn.Module):
    """Images ``[B, 3, 8, 8]`` to logits ``[B, 3]``."""

    def __init__(
        self,
        attention: type[nn.Module] = SplitBiasAttention,
        normalisation: type[nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        blocks = (ScaledBlock(8, attention(8), normalisation) for _ in range(2))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 3)
        spread(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = images(5, torch.float64)
    return [(x[:3], y[:3]), (x[3:], y[3:])]


def assert_exact(model: nn.Module) -> None:
    expected = mean_squares(model, one_by_one(batches()), losses, find_targets(model))
    assert_scores(estimate_scores(model, batches(), losses), expected)


def test_families_vectors_of_their_own_compete():
    targets = find_targets(Model())
    for block in (0, 1):
        for path, role in (
            ('attn.q_bias', 'bias'),
            ('attn.v_bias', 'bias'),
            ('gamma_1', 'scale'),
            ('gamma_2', 'scale'),
        ):
            assert targets[f'blocks.{block}.{path}'].role == role


@pytest.mark.parametrize('frozen', [False, True], ids=['trainable', 'frozen'])
def test_families_scores_of_joined_biases_are_exact(frozen):
    assert_exact(Model().double().requires_grad_(not frozen))


def test_families_scores_of_one_joined_bias_alone():
    """What is not asked for takes its place in the bias without being scored."""
    model = Model().double()
    names = ['blocks.1.attn.v_bias', 'blocks.0.attn.qkv.weight:k']
    expected = mean_squares(model, one_by_one(batches()), losses, names)
    assert_scores(estimate_scores(model, batches(), losses, targets=names), expected)


@pytest.mark.skipif(not hasattr(nn, 'RMSNorm'), reason='torch before 2.4')
def test_families_scores_of_a_norm_without_mean_are_exact():
    model = Model(normalisation=nn.RMSNorm).double()
    assert 'blocks.0.norm1.weight' in find_targets(model)
    assert_exact(model)


def added_apart(self, x):
    return self.qkv(x) + self.bias()


def added_in_place(self, x):
    y = self.qkv(x)
    y += self.bias()
    return y


def used_twice(self, x):
    bias = self.bias()
    return F.linear(x, self.qkv.weight, bias) + F.linear(x, self.qkv.weight.detach(), bias)


def joined_twice(self, x):
    halves = self.bias().chunk(2)
    return F.linear(x, self.qkv.weight, torch.cat(halves))


def chunked_weight(self, x):
    q, k, v = (F.linear(x, part) for part in self.qkv.weight.chunk(3))
    return torch.cat([q, k, v], -1) + self.bias().detach()


def as_a_factor(self, x):
    return self.qkv(x) * self.bias()


def as_columns(self, x):
    joined = torch.cat((self.q_bias[:, None], self.v_bias[:, None]), 1)
    return self.qkv(x) + joined.mean()


def as_a_norm(self, x):
    return F.layer_norm(self.qkv(x), (24,), self.bias())


@pytest.mark.parametrize(
    'project',
    [
        added_apart,
        added_in_place,
        used_twice,
        joined_twice,
        chunked_weight,
        as_a_factor,
        as_columns,
        as_a_norm,
    ],
    ids=lambda project: project.__name__,
)
@pytest.mark.parametrize('frozen', [False, True], ids=['trainable', 'frozen'])
def test_families_scores_of_joined_biases_used_in_another_way_are_exact(project, frozen):
    """One sample at a time, with a warning that names them."""
    model = Model().double()
    attention = model.blocks[0].attn
    attention.project = project.__get__(attention)
    model.requires_grad_(not frozen)
    with pytest.warns(UserWarning, match='_bias|qkv.weight'):
        assert_exact(model)


def test_families_entries_of_bare_vectors_act_and_merge():
    model = Model().double()
    base = Model().double()
    base.load_state_dict(model.state_dict())
    masks = {}
    for block in (0, 1):
        for path in ('attn.q_bias', 'attn.v_bias', 'gamma_1', 'gamma_2'):
            masks[f'blocks.{block}.{path}'] = torch.arange(8) == block + 1
    apply_plan(model, plan_from_masks(masks))
    x = images(3, torch.float64)[0]
    before = model(x)
    torch.testing.assert_close(before, base(x))
    move(model)
    after = model(x)
    assert float((after - before).detach().abs().min()) > 1e-4
    after.pow(2).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == len(masks) and all(bool(p.grad.any()) for p in trained)
    base.load_state_dict(dense_state(model.state_dict()))
    torch.testing.assert_close(after, base(x), rtol=1e-12, atol=1e-12)
    merge_adapters(model)
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)


class OddAttention(nn.Module):
    """Nothing that the table knows: another name, another order, a temperature of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.temper = nn.Parameter(torch.ones(dim))
        self.offsets = nn.Linear(4, dim)
        self.register_buffer('table', torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.into(x).chunk(3, -1)
        mixed = torch.softmax(q * self.temper @ k.transpose(1, 2), -1) @ v
        return self.out(mixed + self.offsets(self.table))


def test_families_a_new_one_is_one_entry(request):
    model = Model(attention=OddAttention).double()
    with pytest.raises(PlanError, match='families.py'):
        find_targets(model)
    entry = Family(
        'the model of this test',
        owns=lambda module: isinstance(module, OddAttention),
        width=lambda module: module.into.in_features,
        fused={'into.weight': ('k', 'q', 'v')},
        vectors={'temper': 'scale'},
        excluded=('offsets',),
    )
    request.addfinalizer(lambda: FAMILIES.remove(entry))
    FAMILIES.append(entry)
    targets = find_targets(model)
    assert targets['blocks.0.attn.into.weight:k'].start == 0
    assert targets['blocks.0.attn.temper'].role == 'scale'
    assert not any('offsets' in name for name in targets)
    assert {'q', 'k', 'v', 'fc1', 'fc2'} <= {target.role for target in targets.values()}
    scores = estimate_scores(model, batches(), losses)
    names = [name for name in targets if ':' not in name]
    expected = mean_squares(model, one_by_one(batches()), losses, names)
    assert_scores({name: scores[name] for name in names}, expected)


def test_families_separate_projections_are_an_attention():
    """The one entry that no backbone of the tests over real classes has."""
    attention = nn.ModuleDict({part: nn.Linear(8, 8) for part in ('q', 'k', 'v', 'proj')})
    model = nn.ModuleList([nn.ModuleDict({'attn': attention, 'fc1': nn.Linear(8, 16)})])
    roles = {name: target.role for name, target in find_targets(model).items()}
    assert roles['0.attn.q.weight'] == 'q' and roles['0.attn.proj.weight'] == 'proj'
    assert roles['0.fc1.weight'] == 'fc1'


class NamedTo(nn.Module):
    """The way of vit-pytorch, here with heads that are wider together than the tokens."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            parts = len(name.removeprefix('to_'))
            self.add_module(name, nn.Linear(8, 12 * parts, bias=False))
        self.to_out = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([getattr(self, name)(x) for name in self.names], -1)
        q, k, v = joined.chunk(3, -1)
        return self.to_out(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


@pytest.mark.parametrize(
    'names', [('to_qkv',), ('to_q', 'to_kv'), ('to_q', 'to_k', 'to_v')], ids='-'.join
)
def test_families_of_projections_named_to(names):
    model = Model(attention=lambda dim: NamedTo(names)).double()
    targets = find_targets(model)
    inside = [t for t in targets.values() if '.attn.' in t.name and len(t.shape) == 2]
    assert [t.role for t in inside] == ['q', 'k', 'v', 'proj'] * 2
    assert [t.shape for t in inside[:4]] == [(12, 8)] * 3 + [(8, 12)]
    if 'to_kv' not in names:  # the oracle knows thirds of a matrix, no halves
        assert_exact(model)
