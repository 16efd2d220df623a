"""Mixed precision: bf16 autocast in training and scoring."""

from __future__ import annotations

import sys

import pytest
import torch

from cdra_mm.core import adapters

from . import toy


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's AmpOptimWrapper asks for a GPU, but its bf16 autocast runs on the CPU too."""
    module = sys.modules['mmengine.optim.optimizer.amp_optimizer_wrapper']
    monkeypatch.setattr(module, 'is_cuda_available', lambda: True)


def config(folder, **options):
    return toy.config(
        folder,
        optim_wrapper=dict(
            type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='AdamW', lr=1e-2)
        ),
        **options,
    )


def test_bf16_trains_fp32_factors_and_resumes_exactly(tmp_path, amp_on_cpu):
    seen = []
    real = torch.is_autocast_enabled

    def spy(*args):
        seen.append(real(*args))
        return seen[-1]

    cfg = config(tmp_path, work_dir=str(tmp_path / 'whole'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'is_autocast_enabled', spy)
        whole = toy.train(cfg)
    assert any(seen), 'no adapted layer ran under autocast'
    parts = adapters(whole.model.backbone).values()
    assert parts and all(p.dtype == torch.float32 for a in parts for p in a.parameters())
    assert all(bool(p.any()) for a in parts for p in a.parameters())

    cfg = config(tmp_path, work_dir=str(tmp_path / 'cut'), resume=True)
    cfg.load_from = str(tmp_path / 'whole/iter_4.pth')
    resumed = toy.train(cfg)
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
