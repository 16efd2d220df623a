"""SPT-LoRA on the masks that its authors released: the same decisions and totals."""

from __future__ import annotations

import math

import numpy
import torch
from torch import nn

from cdra_mm.methods import Request, make_method


class Separate(nn.Module):
    """An attention with q, k and v apart, as SPT's own model has it."""

    def __init__(self, dim):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))


def spt_vit():
    """The names and shapes of SPT's ViT-B/16, without memory."""
    with torch.device('meta'):
        model = nn.Module()
        model.cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        model.blocks = nn.ModuleList(
            nn.ModuleDict(
                dict(
                    norm1=nn.LayerNorm(768),
                    attn=Separate(768),
                    norm2=nn.LayerNorm(768),
                    mlp=nn.ModuleDict(dict(fc1=nn.Linear(768, 3072), fc2=nn.Linear(3072, 768))),
                )
            )
            for _ in range(12)
        )
        model.norm = nn.LayerNorm(768)
    return model


def test_spt_lora_on_the_released_masks_decides_and_counts_as_the_authors(spt_masks):
    """Four tasks, three budgets: every decision and every total, to the parameter.

    The files hold the entries of what is tuned unstructured. What is tuned whole has at
    least the least number that makes it so, and that is what it gets here.
    """
    model = spt_vit()
    method = make_method({'type': 'spt_lora', 'rank': 8})
    layers = ('attn.q', 'attn.k', 'attn.v', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
    checked = 0
    for path in spt_masks:
        with numpy.load(path, allow_pickle=False) as archive:
            for budget in ('b0.1', 'b0.4', 'b1.0'):
                table = archive[f'{budget}/__structured__']
                structured = {
                    f'blocks.{i}.{layers[j]}.weight' for i, j in zip(*table.nonzero(), strict=True)
                }
                tuned = set(archive[f'{budget}/__tuned_vectors__'].tolist())
                counts = {
                    key.partition('/')[2]: archive[key][2:].tolist()
                    for key in archive.files
                    if key.startswith(budget) and '/__' not in key
                }
                assert not (structured | tuned) & set(counts)
                masks = {}
                for name in (*structured, *tuned, *counts):
                    shape = tuple(model.get_parameter(name).shape)
                    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
                    if name in counts:
                        mask[counts[name]] = True
                    else:
                        whole = 8 * sum(shape) / 10 if len(shape) == 2 else shape[0] / 5
                        mask[: math.ceil(whole)] = True
                    masks[name] = mask.view(shape)
                request = Request(model, also_train={'cls_token': 768})
                plan = method.plan_from_masks(request, masks.items())
                assert {block.name for block in plan.blocks} == structured
                whole = {v.name for v in plan.vectors if v.indices is None}
                assert whole == tuned
                single = {m.name: list(m.indices) for m in plan.sparse}
                single |= {v.name: list(v.indices) for v in plan.vectors if v.indices is not None}
                assert single == {n: sorted(i) for n, i in counts.items()}
                millions = float(archive[f'{budget}/__params_millions__'])
                assert plan.num_trainable == round(millions * 1e6)
                checked += 1
    assert checked == 3 * len(spt_masks)
