"""The low-rank adapter by itself: what it accepts, where it starts, what its state says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cdra_mm.core.adapters.low_rank import LowRank, check_index
from cdra_mm.core.model.targets import Target

MATRIX = Target('fc.weight', 'fc', 'weight', '', 0, 6, (6, 5), 'fc1')
ROWS, COLS = torch.tensor([4, 1, 2]), torch.tensor([0, 3])


def build(*, rows=ROWS, cols=COLS, rank=2, **options):
    return LowRank(MATRIX, torch.zeros(6, 5), rows, cols, rank, **options)


@pytest.mark.parametrize(
    'index',
    [
        torch.tensor([[0, 1]]),
        torch.tensor(1),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([0.0, 1.0]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([0, -1]),
        torch.tensor([0, 5]),
        torch.tensor([0, 7]),
    ],
    ids=['matrix', 'scalar', 'int32', 'float', 'empty', 'negative', 'the size', 'beyond it'],
)
def test_check_index_refuses_what_does_not_index_a_side(index):
    with pytest.raises(ValueError, match='^cols are no indices below 5$'):
        check_index(index, 5, 'cols')
    with pytest.raises(ValueError, match='^cols are no indices below 5$'):
        build(cols=index)


def test_check_index_takes_the_first_and_the_last():
    for index in ([0], [4], [4, 0, 2]):
        check_index(torch.tensor(index), 5, 'cols')


def test_low_rank_refuses_rows_outside_and_what_is_no_matrix():
    with pytest.raises(ValueError, match='^rows are no indices below 6$'):
        build(rows=torch.tensor([6]))
    vector = Target('fc.bias', 'fc', 'bias', '', 0, 6, (6,), 'bias')
    with pytest.raises(ValueError, match=r'fc\.bias is no matrix'):
        LowRank(vector, torch.zeros(6), ROWS, COLS, 2)


def test_low_rank_reset_is_uniform_within_its_bound_and_starts_at_zero():
    """Kaiming uniform with a = sqrt 5: within 1 / sqrt(fan in), on both sides of zero."""
    adapter = LowRank(
        Target('w', '', 'w', '', 0, 40, (40, 25), 'fc1'),
        torch.zeros(40, 25),
        torch.arange(40),
        torch.arange(25),
        40,
    )
    nn.init.ones_(adapter.up)
    adapter.reset(torch.Generator().manual_seed(0))
    assert not adapter.up.any()
    low, high = float(adapter.down.detach().min()), float(adapter.down.detach().max())
    assert -0.2 <= low < -0.19 and 0.19 < high <= 0.2
    assert abs(float(adapter.down.detach().mean())) < 0.02


@pytest.mark.parametrize('scale', [1.0, 1 / 3])
def test_low_rank_state_builds_the_same_adapter(scale):
    """To the last bit of the scale, which is a factor of the merged weight."""
    adapter = build(scale=scale)
    adapter.reset(torch.Generator().manual_seed(0))
    nn.init.normal_(adapter.up)
    state = adapter.state_dict()
    assert LowRank.tensors <= set(state) <= LowRank.tensors | LowRank.optional
    twin = build(**LowRank.sizes_of(state))
    twin.load_state_dict(state)
    assert twin.scale == scale and twin.block[2] == scale
    base = torch.randn(6, 5, dtype=torch.float64)
    assert torch.equal(twin.added_to(base), adapter.added_to(base))


def test_low_rank_follows_the_scale_of_a_state():
    adapter, other = build(scale=0.5), build(scale=0.25)
    adapter.load_state_dict(other.state_dict())
    assert adapter.scale == adapter.block[2] == 0.25


@pytest.mark.parametrize('shape', [(3,), (0, 2), (2, 2, 2)])
def test_low_rank_refuses_a_state_whose_down_is_no_matrix(shape):
    state = {**build().state_dict(), 'down': torch.zeros(shape)}
    with pytest.raises(ValueError, match='^down is no matrix$'):
        LowRank.sizes_of(state)


def test_low_rank_lies_where_its_parameter_does():
    """The meta device stands for any other than the CPU's; it has no values to find runs in."""
    adapter = LowRank(MATRIX, torch.zeros(6, 5, device='meta'), torch.arange(2), COLS, 2, 0.5)
    held = {name: value.device.type for name, value in adapter.state_dict().items()}
    assert held.pop('scaling') == 'cpu'  # a number
    assert set(held.values()) == {'meta'}
    adapter.load_state_dict(adapter.state_dict())
    assert adapter.block[0] == slice(0, 2)


def test_low_rank_drops_no_input_unless_told():
    assert build().dropout == 0


def test_low_rank_shows_its_block():
    assert repr(build()) == 'LowRank(weight, block=3x2, rank=2)'
