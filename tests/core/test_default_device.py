"""Whoever has set a default device gets the same: no tensor is made without saying where."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch

import cdra_mm
from cdra_mm.core import adapters, apply_plan, estimate_scores, find_targets, make_plan
from cdra_mm.methods import Request, make_method
from tests.models import MODELS, images, losses

FACTORIES = {
    'arange', 'as_tensor', 'empty', 'eye', 'full', 'linspace', 'ones', 'rand', 'randint', 'randn',
    'randperm', 'tensor', 'zeros',
}  # fmt: skip
METHODS = {
    'cdra': dict(num_sensitive=300),
    'spt_lora': dict(num_sensitive=300),
    **dict.fromkeys(['lora', 'dora', 'rlrr', 'adapter', 'vpt_deep', 'mlp', 'apla', 'gps'], {}),
}


def undecided(path):
    """Calls that make a tensor and leave to torch on which device."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == 'torch'
            given = {keyword.arg for keyword in node.keywords}
            if of_torch and node.func.attr in FACTORIES and not given & {'device', None}:
                yield f'{path.name}:{node.lineno} torch.{node.func.attr}'


@pytest.mark.parametrize('package', ['core', 'methods', 'peft'])
def test_every_new_tensor_has_its_device(package):
    folder = Path(cdra_mm.__file__).parent / package
    assert [call for path in sorted(folder.rglob('*.py')) for call in undecided(path)] == []


@pytest.mark.parametrize('name', METHODS)
def test_plans_and_first_values_are_the_same_under_a_default_device(name):
    """With 'meta' whatever is made there has no values, and is refused beside others."""
    model = MODELS['fused']()
    found = []
    for device in ('cpu', 'meta'):
        own = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        shapes = {n: t.shape for n, t in find_targets(own).items()}
        scores = {n: torch.rand(s, generator=generator) for n, s in shapes.items()}
        with torch.device(device):
            plan = make_method(dict(type=name, **METHODS[name])).plan(Request(own, scores))
            apply_plan(own, plan)
        found.append((plan, {n: a.state_dict() for n, a in adapters(own).items()}))
    (plan, first), (other, second) = found
    assert plan == other and first.keys() == second.keys()
    for key, state in first.items():
        torch.testing.assert_close(state, second[key], rtol=0, atol=0)


def test_scores_and_a_step_are_the_same_under_a_default_device():
    model = MODELS['fused']().eval()
    batches = [images(3, torch.float32)]
    found = []
    for device in ('cpu', 'meta'):
        own = copy.deepcopy(model)
        with torch.device(device):
            scores = estimate_scores(own, batches, losses)
            apply_plan(own, make_plan(scores, budget_params=300))
            loss = losses(own, batches[0]).mean()
            loss.backward()
        found.append((scores, loss))
    torch.testing.assert_close(*found, rtol=0, atol=0)
