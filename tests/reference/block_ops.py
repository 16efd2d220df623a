"""Copies of weights with updates (Eq. 6), and gradients of factors, entry by entry in fp64."""

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


def factor_gradients(dy, x, factors, indices, scales):
    found = []
    dy, x = (tensor.double().t().tolist() for tensor in (dy, x))
    for i, scale in enumerate(scales):
        down, up = (factor.double().tolist() for factor in factors[2 * i : 2 * i + 2])
        rows, cols = (index.tolist() for index in indices[2 * i : 2 * i + 2])
        block = [[sum(a * b for a, b in zip(dy[r], x[c], strict=True)) for c in cols] for r in rows]
        r, c, k = range(len(rows)), range(len(cols)), range(len(down))
        of_down = [[scale * sum(up[a][n] * block[a][b] for a in r) for b in c] for n in k]
        of_up = [[scale * sum(block[a][b] * down[n][b] for b in c) for n in k] for a in r]
        found += [torch.tensor(value, dtype=torch.float64) for value in (of_down, of_up)]
    return found
