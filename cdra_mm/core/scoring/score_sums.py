"""Where sums of squares are kept while a backbone is scored: in which type, and on which device.

Squares are computed in fp32 on the device of their weight, whatever the sums are kept in. In fp32
on that device, the default, they are added there and then. Otherwise a batch's squares of a weight
are first added up in a scratch of one weight:

fp32 on the CPU   the scratch is added there; the same sums but for the order of additions
bfloat16          2 bytes an entry: the sum is widened, added to, and rounded again

A sum of bfloat16 has 8 bits. Rounded to the nearest, it would stand still as soon as it is some 256
times a batch's squares, and entries that get a little in every batch would all end as equals. So
each addition is rounded at a threshold of its own: up where the fraction that does not fit is at
least ``t``, ``t`` going through (0, 1) by the golden ratio, the sequence that leaves the smallest
gaps. What is lost in one batch is then gained in another (dithering: what stochastic rounding does
with random numbers, without them, so that a run can be repeated). fp16 cannot hold squares of
gradients, which are below its smallest number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cdra_mm.errors import ScoreError

from ..flat_layout import padded

__all__ = ['DTYPES', 'Combine', 'ScoreSums']

DTYPES = (torch.float32, torch.bfloat16)
CHUNK = 1 << 20  # entries that are rounded at a time
GOLDEN = 0.6180339887498949

# See `estimate_scores`.
Combine = Callable[[Sequence[Tensor], int], int]


class ScoreSums:
    """Zero sums in the shape of each parameter, cut from one flat tensor per device.

    So that processes add theirs up with one call and without a copy of what may be 6.7 G entries.

    Args:
        parameters: What is scored, by name.
        dtype: One of `DTYPES`.
        device: Where the sums lie; default: where their parameters do.

    Attributes:
        flat: The flat tensors.
        in_place: Whether what is added to them is added there and then: fp32 sums on the devices
            of their parameters.

    Raises:
        ScoreError: If the type is another.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            known = ' or '.join(str(known).removeprefix('torch.') for known in DTYPES)
            raise ScoreError(
                f'scores in {str(dtype).removeprefix("torch.")}: expected {known}'
                + (
                    ' (squared gradients lie below the smallest number of float16)'
                    if dtype == torch.float16
                    else ''
                )
            )
        self._computes = {name: parameter.device for name, parameter in parameters.items()}
        kept = {name: torch.device(device or own) for name, own in self._computes.items()}
        lengths: dict[torch.device, int] = {}
        begins: dict[str, int] = {}
        for name, parameter in parameters.items():
            begins[name] = lengths.get(kept[name], 0)
            lengths[kept[name]] = begins[name] + padded(parameter.numel())
        flat = {to: torch.zeros(size, dtype=dtype, device=to) for to, size in lengths.items()}
        self.flat = list(flat.values())
        self._sums = {
            name: flat[kept[name]][begins[name] : begins[name] + p.numel()].view(p.shape)
            for name, p in parameters.items()
        }
        self._additions: Counter[str] = Counter()
        self.in_place = dtype == torch.float32 and kept == self._computes

    def __getitem__(self, name: str) -> Tensor:
        """The sums of a parameter as they are kept."""
        return self._sums[name]

    @property
    def device(self) -> torch.device | None:
        """Where squares are computed, of the first parameter."""
        return next(iter(self._computes.values()), None)

    def add(self, found: Iterable[tuple[str, slice, Tensor]]) -> None:
        """Adds to some rows of several parameters' sums, in one launch for many where it can.

        Args:
            found: Names, rows and what is added, fp32, all on the parameters' device.
        """
        if self.in_place:
            totals, parts = [], []
            for name, rows, part in found:
                totals.append(self._sums[name][rows])
                parts.append(part)
            if totals:
                torch._foreach_add_(totals, parts)
            return
        for name, rows, part in found:
            with self.open(name, rows) as total:
                total += part

    def are_finite(self) -> bool:
        """Whether all are that was added up; what is not stays so."""
        # The sum of all is NaN or infinite if one is, or too large; it is ten times as fast.
        return all(bool(flat.sum().isfinite() or flat.isfinite().all()) for flat in self.flat)

    @contextmanager
    def open(self, name: str, rows: slice = slice(None)) -> Iterator[Tensor]:
        """Some rows of a parameter's sums, to be added to.

        Yields:
            fp32 on the device of the parameter; what is added to it is kept.
        """
        total, computes = self._sums[name][rows], self._computes[name]
        if total.dtype == torch.float32 and total.device == computes:
            yield total
            return
        squares = torch.zeros(total.shape, device=computes)
        yield squares
        self._additions[name] += 1
        _keep(total, squares, int(self._additions[name] * GOLDEN % 1 * 2**16))


def _keep(total: Tensor, squares: Tensor, threshold: int) -> None:
    """Adds fp32 squares to a sum of any type, on any device."""
    if total.dtype == torch.float32:
        total.add_(squares.to(total.device))
        return
    for kept, new in zip(
        torch.split(total.view(-1), CHUNK), torch.split(squares.view(-1), CHUNK), strict=True
    ):
        wide = kept.to(new.device).to(torch.float32).add_(new)
        kept.view(torch.int16).copy_(_upper_half(wide, threshold))


def _upper_half(wide: Tensor, threshold: int) -> Tensor:
    """The bits of fp32 numbers as bfloat16, int16; overwrites them.

    Args:
        wide: fp32, contiguous.
        threshold: Of 2^16: a number is rounded away from zero where its lower 16 bits and this
            carry over.
    """
    return wide.view(torch.int32).add_(threshold).bitwise_right_shift_(16).to(torch.int16)
