"""Copies of weights with updates, and the gradients of factors, entry by entry in fp64."""

from __future__ import annotations

import torch


def adapted_copies(weights, plain, factors, indices, counts, scales):
    copies, block = [], 0
    for weight, count in zip(weights, counts, strict=True):
        copy = weight.double().cpu().clone()
        for i in range(block, block + count):
            down, up = (factor.double().tolist() for factor in factors[2 * i : 2 * i + 2])
            rows, cols = (index.tolist() for index in indices[2 * i : 2 * i + 2])
            for a, row in enumerate(rows):
                for b, col in enumerate(cols):
                    copy[row, col] += scales[i] * sum(up[a][k] * d[b] for k, d in enumerate(down))
        copies.append(copy)
        block += count
    return copies + [tensor.double().cpu() for tensor in plain]


def factor_gradients(blocks, factors, scales):
    found = []
    for i, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
        down, up = (factor.double().tolist() for factor in factors[2 * i : 2 * i + 2])
        wide = block.double().tolist()
        rows, cols, ranks = range(len(up)), range(len(down[0])), range(len(down))
        of_down = [[scale * sum(up[a][k] * wide[a][b] for a in rows) for b in cols] for k in ranks]
        of_up = [[scale * sum(wide[a][b] * down[k][b] for b in cols) for k in ranks] for a in rows]
        found += [torch.tensor(x, dtype=torch.float64) for x in (of_down, of_up)]
    return found
