"""What the tests of the methods share: tiny models, a method put on them, a trained twin."""

from __future__ import annotations

import copy

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cdra_mm.core import (
    adapters,
    apply_plan,
    build_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    unmerge_adapters,
)
from cdra_mm.methods import Request, make_method
from tests.core.problems import move
from tests.models import TinyViT, spread

SIZE = 16
EXACT = dict(rtol=1e-12, atol=1e-12)  # kernels round by the alignment of their inputs


def timm_vit(**options) -> nn.Module:
    """timm's ViT: 5 tokens of width 8 through 3 blocks, no parameter at a symmetric value."""
    sizes = dict(img_size=SIZE, patch_size=8, embed_dim=8, depth=3, num_heads=2, mlp_ratio=2)
    model = VisionTransformer(**{**sizes, 'num_classes': 3, **options})
    spread(model)
    return model.double().eval()


def tiny(attention: str = 'fused', **options) -> nn.Module:
    """A tiny ViT of ``tests.models``, without dropout."""
    return TinyViT(attention=attention, drop=0.0, **options).double().eval()


def inputs(size: int = SIZE, count: int = 3) -> torch.Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def plan_for(model: nn.Module, config: dict, **options):
    """The plan of a method without scores."""
    return make_method(config).plan(Request(model, **options))


def adapt(base: nn.Module, config: dict, *, moved: bool = False, seed: int = 0):
    """A copy of a model with the method's plan on it, and the plan."""
    plan = plan_for(base, config)
    model = apply_plan(copy.deepcopy(base), plan, seed=seed)
    if moved:
        move(model)
    return model, plan


def trained(model: nn.Module) -> list[str]:
    """Names of what is trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a model says, evaluated; several maps as one vector per sample."""
    model.eval()  # mmseg's backbones return nothing here
    y = model(x)
    return torch.cat([z.flatten(1) for z in y], 1) if isinstance(y, list | tuple) else y


def assert_trains_exactly(base: nn.Module, model: nn.Module, plan, x: torch.Tensor) -> None:
    """One step moves every declared parameter and no other."""
    own = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in own) == plan.num_trainable > 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs(model, x).square().sum().backward()
    torch.optim.SGD(own, lr=0.1).step()
    names = set(trained(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names), name
    plain = base.state_dict()
    assert all(torch.equal(before[k], v) for k, v in plain.items() if k not in names)


def come_back(base: nn.Module, model: nn.Module, plan, folder) -> tuple[nn.Module, nn.Module]:
    """Copies of the base with what a state dict and an adapter file of the model bring."""
    state = model.state_dict()
    again = copy.deepcopy(base)
    assert sorted(build_adapters(again, state)) == sorted(adapters(model))
    again.load_state_dict(state, strict=True)
    save_adapter(model, folder / 'a.safetensors')
    loaded = copy.deepcopy(base)
    assert load_adapter(loaded, folder / 'a.safetensors') == plan
    return again, loaded


@torch.no_grad()
def assert_travels(base: nn.Module, model: nn.Module, plan, x: torch.Tensor, folder) -> None:
    """A state dict, an adapter file and a deep copy give the same outputs again."""
    expected = outputs(model, x)
    for other in come_back(base, model, plan, folder):
        torch.testing.assert_close(outputs(other, x), expected, **EXACT)
    copied = copy.deepcopy(model)
    move(copied, seed=9)
    torch.testing.assert_close(outputs(model, x), expected, **EXACT)
    assert not torch.allclose(outputs(copied, x), expected)


def assert_merges_and_comes_out_again(base: nn.Module, model: nn.Module, x: torch.Tensor) -> None:
    """The plain model with the merged weights says the same; unmerged, they are the base's."""
    y = model(x)
    merge_adapters(model)
    plain = copy.deepcopy(base)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), y)
    assert not torch.allclose(y, base(x))
    unmerge_adapters(model)
    torch.testing.assert_close(model(x), y)
    for name, value in base.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def assert_same_gradients(ours: list, theirs: list) -> None:
    """Gradients of parameters pair by pair."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad)
