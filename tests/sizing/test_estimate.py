"""Sizes said on the meta device are those of a model that is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdra_mm.core import apply_plan, estimate_scores, find_targets
from cdra_mm.errors import ConfigError
from cdra_mm.sizing.block_time import time_blocks
from cdra_mm.sizing.estimate import GB, Peak, dry_run, standing_plan
from cdra_mm.sizing.live_bytes import LiveBytes
from tests.benchmark.tiny import build_tiny

pytest.importorskip('timm')
SIDE = 32


def built(device, dtype=torch.float32):
    torch.manual_seed(0)
    with torch.device(device):
        model = build_tiny('tiny', SIDE).to(dtype)
    model.head = nn.Identity()
    return model


def images(count, device='meta', dtype=torch.float32):
    return torch.zeros(count, 3, SIDE, SIDE, device=device, dtype=dtype)


@pytest.fixture(scope='module')
def found():
    return dry_run(built('meta'), images, batch=4, share=0.05)


def test_counts_are_those_of_the_model(found):
    model = built('cpu')
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.base == 4 * found.parameters
    assert found.entries == sum(target.numel for target in find_targets(model).values())
    assert found.largest == 4 * 48 * 48
    assert 0 < found.trained <= 0.05 * found.parameters


def test_peak_of_a_training_step_is_that_of_a_real_one(found):
    model = built('cpu')
    apply_plan(model, standing_plan(model, int(0.05 * found.parameters)))
    trained = [p for p in model.parameters() if p.requires_grad]
    x = images(8, 'cpu')
    with LiveBytes() as live:
        torch.autograd.grad(model(x).sum(), trained)
    # The rules of a CPU merge weights, and its attention keeps other sums.
    assert found.training.at(8) == pytest.approx(live.peak, rel=0.25)


def test_peak_of_scoring_is_that_of_a_real_one(found):
    model = built('cpu')
    with LiveBytes() as live:
        estimate_scores(model, [torch.randn(8, 3, SIDE, SIDE)], lambda m, x: m(x).square().mean(1))
    sums = found.scores(torch.float32)
    assert found.scoring.at(8) + sums == pytest.approx(live.peak, rel=0.25)


def test_bf16_halves_what_is_held():
    narrow = dry_run(
        built('meta', torch.bfloat16),
        lambda count: images(count, dtype=torch.bfloat16),
        batch=4,
        share=0.05,
    )
    assert narrow.base == 2 * narrow.parameters
    assert narrow.scores(torch.bfloat16) * 2 == narrow.scores(torch.float32)
    wide = dry_run(built('meta'), images, batch=4, share=0.05)
    assert 0.4 * wide.training.image < narrow.training.image < 0.7 * wide.training.image


def test_stages_hold_what_they_need(found):
    stages = {name: held for name, (held, _) in found.stages().items()}
    scores = 4 * found.entries
    assert stages['scoring, scores in fp32'] == found.base + scores
    assert stages['scoring, on the CPU'] == found.base + 4 * found.largest
    assert stages['planning'] == found.base + scores + found.largest
    assert stages['training'] == found.base + 12 * found.trained


def test_text_says_what_fits(found):
    roomy, tight = found.text(80 * GB), found.text(found.base + 1)
    assert 'scoring, on the CPU' in roomy and roomy.count(' yes ') == 5
    assert tight.count(' no ') == 5 and ' none' in tight


def test_peak_is_a_line():
    peak = Peak(fixed=100, image=10)
    assert peak.at(3) == 130 and peak.fitting(135) == 3 and peak.fitting(50) == 0


def test_blocks_are_timed_with_the_shapes_of_the_backbone():
    model = built('meta')
    timed = time_blocks(model, images, blocks=1, batch=2, share=0.2, device='cpu')
    assert (timed.blocks, timed.depth, timed.dtype) == (1, 2, 'float32')
    assert min(timed.backward, timed.planning) > 0
    text = timed.text(400)
    assert 'measured: 1 of 2 blocks, batch 2' in text
    assert 'extrapolated to 2 blocks: scoring 400 samples' in text
    assert all(p.device.type == 'meta' for p in model.parameters())


@pytest.mark.parametrize('blocks', [0, 3])
def test_blocks_that_are_not_there_are_refused(blocks):
    with pytest.raises(ConfigError, match=f'{blocks} blocks to time: expected 1 to 2'):
        time_blocks(built('meta'), images, blocks=blocks, batch=1, share=0.1, device='cpu')


def test_blocks_that_need_one_another_are_refused():
    model = built('meta')
    model.blocks[0].forward = lambda x: F.linear(x, torch.zeros(3, 3))
    model.forward = lambda x: model.blocks[0].norm1(torch.zeros(1, 4, 48, device='meta'))

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = model.blocks

        def forward(self, x):
            for block in self.blocks:
                for hook in block._forward_pre_hooks.values():
                    hook(block, (torch.zeros(1, 4, 48, device='meta'),), {})

    with pytest.raises(ConfigError, match='leave --time-blocks out'):
        time_blocks(Called(), images, blocks=1, batch=1, share=0.1, device='cpu')
