"""The time of the host: who is compared, by what, and without our kernels' work."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.benchmark import host_time
from cdra_mm.benchmark.case import NARROW, TIMM_NAMES, build_narrow
from cdra_mm.benchmark.host_time import compare_host
from cdra_mm.benchmark.report import render
from cdra_mm.core.adapters import block_ops
from tests.core.adapters.block_layers import Layers

from .tiny import build_tiny, tiny_case


def test_host_is_compared_on_a_cpu_whatever_the_setting():
    pytest.importorskip('peft')
    pytest.importorskip('triton')
    record = compare_host(tiny_case(dtype='bf16', device='cuda'), blocks=['spt'], build=build_tiny)
    assert (record['device'], record['dtype'], record['batch']) == ('cpu', 'fp32', 1)
    names = ['frozen limit', 'ours spt, copied', 'ours spt, factored', 'peft LoRA r=8', 'full']
    assert list(record['candidates']) == names
    assert not record['skipped']
    for entry in record['candidates'].values():
        assert entry['seconds'] > 0
        assert {'ratio_vs_frozen_limit', 'ratio_vs_peft_lora', 'ratio_vs_full'} <= set(entry)
    assert 'x full' in render([record])


def test_kernels_are_compiled_and_called_but_not_launched(monkeypatch):
    pytest.importorskip('triton')
    gradient, factors = torch.ones(4, 3), [torch.ones(2, 3), torch.ones(4, 2)]
    plain, made = host_time._Unlaunched.__getitem__, []

    def noted(kernel, grid):
        return lambda *args, **kwargs: made.append(plain(kernel, grid)(*args, **kwargs))

    monkeypatch.setattr(host_time._Unlaunched, '__getitem__', noted)
    with host_time._kernels_that_are_not_launched() as found:
        assert found
        assert block_ops.kernels_run(torch.device('cpu'))
        block_ops.factor_gradients(gradient, [0, 3], factors, [1.0])
        layers = Layers([(9, 7, [(4, 3, 2)])])
        block_ops.adapted_copies(*layers.arguments, torch.bfloat16)
    assert [kernel.name for kernel in made] == ['_factor_tiles', '_write_tiles']
    assert {kernel.metadata.target.arch for kernel in made} == {host_time.CAPABILITY}
    assert not block_ops.kernels_run(torch.device('cpu'))
    down, up = block_ops.factor_gradients(gradient, [0, 3], factors, [1.0])
    assert torch.equal(down, torch.full((2, 3), 4.0))
    assert torch.equal(up, torch.full((4, 2), 3.0))


def test_without_triton_ours_is_skipped_by_name(monkeypatch):
    monkeypatch.setattr(host_time, 'find_spec', lambda name: None)
    record = compare_host(tiny_case(), blocks=['spt'], peers=(), build=build_tiny)
    assert record['skipped'] == {'ours spt, copied': 'Triton is not installed: pip install triton'}
    assert 'ours spt, factored' in record['candidates']


@pytest.mark.parametrize('name', TIMM_NAMES)
def test_narrow_models_have_all_layers(name):
    pytest.importorskip('timm')
    model = build_narrow(name, 32)
    assert model.embed_dim == NARROW
    assert len(model.blocks) == (24 if name == 'ViT-L' else 12)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
