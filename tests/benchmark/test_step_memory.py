"""Bytes of a step, counted on tensors without values, are those of a real one."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.benchmark import compared_models
from cdra_mm.benchmark.launches import builders_by_product
from cdra_mm.benchmark.report import render
from cdra_mm.benchmark.step_memory import compare_memory, peak_of_step
from cdra_mm.sizing.live_bytes import LiveBytes

from .tiny import tiny_case


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_peak_is_that_of_a_real_step(dtype):
    case = tiny_case(dtype=dtype)
    for build in builders_by_product(case, ['paper'], [], {}).values():
        model = build(case.make_model()).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        batch = case.make_batch()
        with LiveBytes() as live:
            grads = torch.autograd.grad(
                case.losses(model, batch).mean(), trained, allow_unused=True
            )
        assert any(grad is not None for grad in grads)
        peak = live.peak
        assert peak_of_step(case, model) == peak


def test_ours_holds_less_than_lora_and_full():
    pytest.importorskip('peft')
    record = compare_memory(tiny_case(batch=8, dtype='bf16'))
    total = {name: entry['total_bytes'] for name, entry in record['candidates'].items()}
    for blocks in ('paper', 'spt'):
        ours = total[f'ours {blocks}, copied']
        assert total['frozen limit'] < ours < total['peft LoRA r=8'] < total['full']
        assert total[f'ours {blocks}, copied, recomputed'] < ours
    entry = record['candidates']['full']
    model = compared_models.full(tiny_case().make_model())
    assert entry['optimizer_bytes'] == 2 * entry['weight_bytes']
    assert entry['weight_bytes'] == sum(4 * p.numel() for p in model.parameters())
    assert 'step at its peak' in render([record])
