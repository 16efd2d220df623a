"""What the paper's ablations change about a matrix (CDRA-SPT, Tables 5, 6 and 7).

With n selected entries and the compact block R x C of Eq. 4:

- Table 5: one of Eq. 1's cases, or both, treated as SPT does. *Case 1*, few entries: these
  alone are trained. *Case 2*, many: LoRA on the whole matrix. The paper's text draws the line
  at n = LoRA's parameters, SPT's released code at a tenth of them (`alpha`).
- Table 6: a block of another size. Rows and columns are taken in the order of Eq. 4, most
  selected first, ties by index; those that hold nothing follow by index. The ratio is of each
  side, to the nearest integer, and the rank follows from the selected entries inside the new
  block; the paper says neither.
- Table 7: another of the four parts of the matrix, by the paper's names: the first digit is 1
  for R and 0 for the rows outside, the second is 0 for C and 1 for the columns outside.
  The rank is that of R x C: by Eq. 7 a part without selected entries would have none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from cdra_mm.errors import PlanError
from cdra_mm.settings import check_settings, setting

__all__ = ['NO_ABLATION', 'QUADRANTS', 'Ablation']

QUADRANTS = ('10', '00', '11', '01')
Count = TypeVar('Count', int, Tensor)


@dataclass(frozen=True)
class Ablation:
    """How the treatment of a matrix departs from the method; the defaults do not.

    Args:
        case1: Whether CDRA takes the matrices of Eq. 1's case 1; otherwise their selected
            entries are trained alone.
        case2: Likewise for case 2; otherwise LoRA on the whole matrix.
        alpha: Case 2 begins at ``LoRA's parameters / alpha`` selected entries.
        lora_rank: Rank of that LoRA.
        size_ratio: Sides of the trained block over those of the compact block.
        quadrant: ``'10'`` R x C, ``'00'`` not-R x C, ``'11'`` R x not-C, ``'01'`` neither.

    Raises:
        PlanError: If a setting is out of range.
    """

    case1: bool = True
    case2: bool = True
    # Below 1, more entries than LoRA has parameters would be trained before it.
    alpha: float = setting(10, minimum=1)
    lora_rank: int = setting(8, minimum=1)
    size_ratio: float = setting(1.0, above=0)
    quadrant: str = setting('10', choices=QUADRANTS, note='R x C, not-R x C, R x not-C, neither')

    def __post_init__(self) -> None:
        check_settings(self, PlanError)

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that differ from the method's."""
        given = asdict(self)
        return {f.name: given[f.name] for f in fields(self) if given[f.name] != f.default}

    def rank_of_lora(self, shape: tuple[int, ...]) -> int:
        """Rank of LoRA on a whole matrix."""
        return min(self.lora_rank, *shape)

    def lora_params(self, shape: tuple[int, ...]) -> int:
        """Parameters of LoRA on a whole matrix, which is Eq. 1's alpha."""
        return self.rank_of_lora(shape) * sum(shape)

    def resized(self, side: Count, whole: int) -> Count:
        """The side of the trained block for one of R x C, at most the matrix's; 0 stays 0."""
        if isinstance(side, int):
            return min(max(int(self.size_ratio * side + 0.5), 1), whole) if side else 0
        if self.size_ratio == 1:
            return side
        # Clamped before it is an integer: a double beyond int64 has no defined value there.
        wide = (self.size_ratio * side.double() + 0.5).clamp(1, whole).to(torch.int64)
        return wide * (side > 0)

    def sides(self, rows: Count, cols: Count, shape: tuple[int, ...]) -> tuple[Count, Count]:
        """Sides of the adapted one of the four parts of a matrix (Eq. 2) for those of R x C."""
        return (
            rows if self.quadrant[0] == '1' else shape[0] - rows,
            cols if self.quadrant[1] == '0' else shape[1] - cols,
        )


NO_ABLATION = Ablation()
