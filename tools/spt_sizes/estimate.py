"""What SPT selects at any budget, estimated from the masks that it released of a ViT-B/16.

SPT released its masks, but of a matrix that it tunes with LoRA only that it has at least a tenth
of LoRA's parameters selected. So a plan of the size of SPT's is an estimate:

- A matrix's share of selected entries, as a normal quantile, moves by the same amount from one
  budget to the next (log-normal scores of a common width): the median over the matrices whose
  entries are released at both. Its sides grow with powers of its entries, likewise medians.
- A matrix that SPT tunes with LoRA has at least the number of entries that makes it so.
- All of them are then moved together until SPT-LoRA-8 trains what its budget says.

What a mask file holds: cdra_mm/reading/mask_file.py; beside the masks the tables that begin with
two underscores, which SPT's files have.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from pathlib import Path
from statistics import NormalDist, median
from typing import NamedTuple

from cdra_mm.errors import DataError

WIDTH = 768
# SPT's table has a column for each of them.
LAYERS = ('attn.q', 'attn.k', 'attn.v', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
SHAPES = [(WIDTH, WIDTH)] * 4 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
LORA_RANK, LORA_SHARE = 8, 10  # SPT-LoRA-8; its code's factor on the number of selected entries
NORMAL = NormalDist()


class Size(NamedTuple):
    """Selected entries of a matrix, and the sides of its compact block."""

    entries: int
    rows: int
    cols: int


class Released(NamedTuple):
    """What a file says of one budget.

    Attributes:
        single: The matrices of which single entries are tuned, by name.
        structured: Names of those tuned with LoRA.
        beside: Parameters beside both: vectors and the class token.
    """

    single: dict[str, Size]
    structured: set[str]
    beside: int


def weight_of(block: int, layer: int) -> str:
    return f'blocks.{block}.{LAYERS[layer]}.weight'


WEIGHTS = {weight_of(i, j): shape for i in range(12) for j, shape in enumerate(SHAPES)}


def lora_params(name: str) -> int:
    return LORA_RANK * sum(WEIGHTS[name])


def has_lora(name: str, entries: float) -> bool:
    """Whether SPT tunes a matrix with LoRA (Eq. 1)."""
    return entries * LORA_SHARE >= lora_params(name)


def spt_params(name: str, entries: float) -> float:
    """What SPT-LoRA-8 trains of a matrix."""
    return lora_params(name) if has_lora(name, entries) else entries


def read(path: Path) -> dict[float, Released]:
    """What a file says, by budget in millions of parameters, the smallest first."""
    from cdra_mm.reading import read_masks
    from cdra_mm.reading.numpy_file import read_npz

    beside = {key: array for key, array in read_npz(path, 'mask file') if '/__' in key}
    found = {}
    for budget, masks in read_masks(path).items():
        try:
            table = beside[f'b{budget}/__structured__']
            total = round(1e6 * float(beside[f'b{budget}/__params_millions__']))
        except KeyError as error:
            raise DataError(f'{path} lacks {error}: expected a mask file of SPT') from None
        for name, mask in masks.items():
            if WEIGHTS.get(name) != tuple(mask.shape):
                shape = tuple(mask.shape)
                raise DataError(
                    f'{path}: {name} {shape} is no matrix of the ViT-B/16 that SPT tunes'
                )
        structured = {weight_of(i, j) for i, j in zip(*table.nonzero(), strict=True)}
        single = {
            name: Size(int(mask.sum()), int(mask.any(1).sum()), int(mask.any(0).sum()))
            for name, mask in masks.items()
        }
        known = sum(size.entries for size in single.values()) + sum(map(lora_params, structured))
        found[float(budget)] = Released(single, structured, total - known)
    if len(found) < 2:
        raise DataError(f'{path} holds {len(found)} budget: expected two, to see how blocks grow')
    return dict(sorted(found.items()))


def quantile(name: str, entries: float) -> float:
    high, wide = WEIGHTS[name]
    return NORMAL.inv_cdf(min(entries / (high * wide), 1 - 1e-9))


class Estimate:
    """The selection of one task at any number of parameters that SPT trains.

    Args:
        released: See `read`.
    """

    def __init__(self, released: dict[float, Released]) -> None:
        budgets = list(released.values())
        pairs = [
            (name, small.single[name], large.single[name])
            for small, large in zip(budgets, budgets[1:], strict=False)
            for name in small.single.keys() & large.single.keys()
        ]
        grown = [(a, b, log(b.entries / a.entries)) for _, a, b in pairs if b.entries > a.entries]
        self.row_power = median(log(b.rows / a.rows) / by for a, b, by in grown)
        self.col_power = median(log(b.cols / a.cols) / by for a, b, by in grown)
        self.last: dict[str, Size] = {}  # released of a matrix, at the largest budget
        self.place: dict[str, float] = {}  # its quantile at the largest budget
        before = None
        for step in budgets:
            if before is not None:
                both = before.single.keys() & step.single.keys()
                by = median(
                    quantile(name, step.single[name].entries)
                    - quantile(name, before.single[name].entries)
                    for name in both
                )
                self.place = {name: place + by for name, place in self.place.items()}
            for name, size in step.single.items():
                self.last[name], self.place[name] = size, quantile(name, size.entries)
            for name in step.structured & self.place.keys():
                least = quantile(name, lora_params(name) / LORA_SHARE)
                self.place[name] = max(self.place[name], least)
            before = step
        self.beside = {budget: step.beside for budget, step in released.items()}

    def moved(self, by: float) -> dict[str, Size]:
        """The matrices with their quantiles moved."""
        sizes = {}
        for name, place in self.place.items():
            high, wide = WEIGHTS[name]
            entries = max(1, round(high * wide * NORMAL.cdf(place + by)))
            last = self.last[name]
            rows = round(last.rows * (entries / last.entries) ** self.row_power)
            cols = round(last.cols * (entries / last.entries) ** self.col_power)
            rows, cols = min(max(rows, 1), high, entries), min(max(cols, 1), wide, entries)
            sizes[name] = Size(min(entries, rows * cols), rows, cols)
        return sizes

    def at(self, millions: float) -> tuple[dict[str, Size], float]:
        """Matrices and parameters beside them where SPT-LoRA-8 trains so many million."""
        (low, fewer), *_, (high, more) = self.beside.items()
        beside = fewer + (more - fewer) * (millions - low) / (high - low)
        least, most = -3.0, 3.0
        for _ in range(40):
            by = (least + most) / 2
            sizes = self.moved(by)
            trained = sum(spt_params(name, size.entries) for name, size in sizes.items())
            least, most = (least, by) if trained + beside > 1e6 * millions else (by, most)
        return sizes, beside


def num_sides(sizes: Iterable[Size]) -> int:
    return sum(size.rows + size.cols for size in sizes)


def without_its_masks(budgets: dict[float, Released], held: float) -> dict[str, Size]:
    """The estimate for a released budget, made from the others."""
    others = {budget: step for budget, step in budgets.items() if budget != held}
    return Estimate(others).at(held)[0]
