"""The linear head against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmseg.utils import register_all_modules

from cdra_mm.mm.heads import LinearBNHead

register_all_modules(init_default_scope=False)


def test_linear_head_is_a_norm_and_a_matrix_on_each_patch():
    head = LinearBNHead(8, num_classes=3, in_index=-1).eval()
    torch.nn.init.normal_(head.norm.weight)
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    maps = [torch.randn(2, 8, 4, 5), torch.randn(2, 8, 4, 5)]
    tokens = maps[1].permute(0, 2, 3, 1)
    norm, conv = head.norm, head.conv_seg
    scaled = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight
    expected = (scaled + norm.bias) @ conv.weight[:, :, 0, 0].T + conv.bias
    torch.testing.assert_close(head(maps), expected.permute(0, 3, 1, 2))


def test_linear_head_on_four_maps_is_the_head_on_their_concatenation():
    four = LinearBNHead(
        [8] * 4, num_classes=3, in_index=[0, 1, 2, 3], input_transform='resize_concat'
    )
    one = LinearBNHead(32, num_classes=3, in_index=0)
    one.load_state_dict(four.state_dict())
    maps = [torch.randn(2, 8, 4, 4) for _ in range(4)]
    assert torch.equal(four(maps), one([torch.cat(maps, 1)]))


@pytest.mark.parametrize('size', [1e-2, 1e2])
def test_linear_head_learns_at_one_rate_whatever_the_size_of_the_tokens(size):
    head = LinearBNHead(8, num_classes=2, in_index=0)
    maps = torch.randn(4, 8, 6, 6)
    labels = (maps[:, 0] > 0).long()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head([size * maps]), labels).backward()
        optimizer.step()
    assert (head([size * maps]).argmax(1) == labels).float().mean() > 0.95
