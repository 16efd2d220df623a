"""LoRA: equal to peft's and mmpretrain's from the same values, and to its dense weights."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import (
    ConfigError,
    Plan,
    PlanError,
    adapters,
    apply_plan,
    count_parameters,
    find_targets,
    merge_adapters,
)
from cdra_mm.methods import Request, make_method
from tests.methods.adapted import come_back
from tests.models import TinySwin, TinyViT
from tests.reference.layers import dense_model

MODELS = {
    'timm': lambda: vit(),
    'fused': TinyViT,
    'mha': lambda: TinyViT(attention='mha_sequence'),
    'swin': TinySwin,
}


def vit():
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=3
    )


def images(model):
    side = 16 if isinstance(model, VisionTransformer) else 8
    return torch.randn(4, 3, side, side, dtype=next(model.parameters()).dtype)


def decide(model, **settings):
    settings = {'rank': 2, **settings}
    return make_method({'type': 'lora', **settings}).plan(Request(model))


def moved(model):
    """Every factor at a random value, as after some steps."""
    with torch.no_grad():
        for adapter in adapters(model).values():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('targets', [['q', 'v'], 'all'])
def test_lora_starts_at_the_base_and_trains_what_it_declares(kind, targets):
    base = MODELS[kind]().eval()
    x = images(base)
    expected = base(x)
    plan = decide(base, targets=targets)
    assert plan == Plan.from_json(plan.to_json())
    model = apply_plan(copy.deepcopy(base), plan).eval()
    assert torch.equal(model(x), expected) or kind == 'mha'
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    shapes = [
        target.shape
        for target in find_targets(base).values()
        if len(target.shape) == 2 and (targets == 'all' or target.role in targets)
    ]
    assert len(shapes) == len(plan.blocks) > 0
    trained = sum(2 * (rows + cols) for rows, cols in shapes)
    assert count_parameters(model)[0] == plan.num_trainable == trained


@pytest.mark.parametrize('kind', MODELS)
def test_lora_equals_dense_weights_with_all_gradients(kind):
    """q and v of a fused matrix too, where peft has no counterpart."""
    base = MODELS[kind]().double().eval()
    x = images(base)
    model = moved(apply_plan(copy.deepcopy(base), decide(base, alpha=2)))
    dense = dense_model(base, model.state_dict())
    y, expected = model(x), dense(x)
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    y.backward(seed)
    expected.backward(seed)
    for name, adapter in adapters(model).items():
        target = find_targets(base)[name]
        grad = dense.get_parameter(target.path).grad[target.start : target.stop]
        torch.testing.assert_close(adapter.down.grad, adapter.up.t() @ grad)
        torch.testing.assert_close(adapter.up.grad, grad @ adapter.down.t())


@pytest.mark.parametrize('alpha', [2, 5])
def test_lora_equals_peft(alpha):
    peft = pytest.importorskip('peft')
    base = vit().double()
    config = peft.LoraConfig(
        r=2, lora_alpha=alpha, target_modules=r'blocks\.\d+\.(attn\.proj|mlp\.fc[12])'
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), config).double()
    ours = apply_plan(
        copy.deepcopy(base), decide(base, alpha=alpha, targets=['proj', 'fc1', 'fc2'])
    )
    layers = {
        name.removeprefix('base_model.model.'): module
        for name, module in theirs.named_modules()
        if hasattr(module, 'lora_A')
    }
    same_from_the_start(ours, images(base), theirs, layers, lambda m: (m.lora_A, m.lora_B))
    assert count_parameters(ours)[0] == theirs.get_nb_trainable_parameters()[0]


def test_lora_equals_mmpretrain():
    from mmengine.registry import DefaultScope
    from mmpretrain.models.peft import LoRAModel

    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    module = dict(type='VisionTransformer', arch=arch, img_size=16, patch_size=8)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = LoRAModel(
            module, alpha=6, rank=2, targets=[dict(type=r'.*(attn\.proj|ffn\.layers.*)')]
        ).double()
    plain = copy.deepcopy(theirs.module)
    for path, layer in list(plain.named_modules()):
        if hasattr(layer, 'original_layer'):
            parent, _, name = path.rpartition('.')
            setattr(plain.get_submodule(parent), name, layer.original_layer)
    ours = apply_plan(plain, decide(plain, alpha=6, targets=['proj', 'fc1', 'fc2']))
    layers = {
        name: layer
        for name, layer in theirs.module.named_modules()
        if hasattr(layer, 'original_layer')
    }
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    same_from_the_start(
        Last(ours), x, Last(theirs.module), layers, lambda m: (m.lora_down, m.lora_up)
    )


class Last(nn.Module):
    """The last output of a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[-1]


def same_from_the_start(ours, x, theirs, layers, factors):
    """Equal outputs and gradients from equal factors, of every adapted layer."""
    owner = ours.backbone if isinstance(ours, Last) else ours
    present = adapters(owner)
    assert len(layers) == len(present) > 0
    pairs = []
    for path, layer in layers.items():
        adapter = present[f'{path}.weight']
        theirs_down, theirs_up = (
            (f['default'] if isinstance(f, nn.ModuleDict) else f).weight for f in factors(layer)
        )
        with torch.no_grad():
            for a, b in ((adapter.down, theirs_down), (adapter.up, theirs_up)):
                assert a.shape == b.shape
                a.copy_(torch.randn_like(a))
                b.copy_(a)
            pairs += [(adapter.down, theirs_down), (adapter.up, theirs_up)]
    ours.eval()
    theirs.eval()
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected)
    F.mse_loss(y, torch.zeros_like(y)).backward()
    F.mse_loss(expected, torch.zeros_like(y)).backward()
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('kind', MODELS)
def test_lora_comes_back_from_a_state_dict_a_file_and_a_merge(kind, tmp_path):
    base = MODELS[kind]().double().eval()
    x = images(base)
    plan = decide(base, alpha=3, targets='all')
    model = moved(apply_plan(copy.deepcopy(base), plan)).eval()
    y = model(x)
    for other in come_back(base, model, plan, tmp_path):
        torch.testing.assert_close(other(x), y)
    merge_adapters(model)
    torch.testing.assert_close(model(x), y)
    plain = copy.deepcopy(base)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), y)


def test_lora_drops_inputs_of_the_branch_in_training_only():
    base = TinyViT(drop=0.0)
    model = moved(apply_plan(base, decide(base, dropout=0.5)))
    x = images(model)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(rank=0), ConfigError, 'rank=0: expected an integer of at least 1'),
        (dict(alpha=0), ConfigError, 'alpha=0: expected a number above 0'),
        (dict(dropout=1.0), ConfigError, r'dropout=1\.0: expected a probability'),
        (dict(targets=[]), ConfigError, r'targets=\[\]: expected roles'),
        (dict(targets=['q', 3]), ConfigError, 'expected text or a list of texts'),
        (dict(targets=['q', 'w1']), PlanError, "no matrix of the role 'w1': targets may be q, k"),
        (dict(rank=9, targets='fc1'), PlanError, r'is 16 x 8: a rank of 9 is no low rank'),
    ],
)
def test_lora_refuses_settings_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        decide(TinyViT(), **settings)


def test_lora_of_a_role_by_its_name_alone():
    roles = [find_targets(TinyViT())[b.name].role for b in decide(TinyViT(), targets='fc1').blocks]
    assert roles == ['fc1', 'fc1']
