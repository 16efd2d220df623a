"""What the processes of a run tell each other while each scores a share of the samples.

Whatever happens to one of them, all meet once at the end of their shares: a
process that left early would keep the others waiting for the backend's time-out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    get_comm_device,
    get_rank,
    get_world_size,
)
from mmengine.logging import MMLogger
from torch import Tensor

from cdra_mm.errors import ScoreError

__all__ = ['ScoreReduction', 'own_share']

PIECE = 1 << 27  # entries: half a GB of fp32 on the GPU at a time


def own_share(indices: Sequence[int], unit: int) -> list[int]:
    """This process' part of the samples: every ``get_world_size()``-th group of `unit` samples.

    Args:
        indices: All samples.
        unit: 1, or the batch size where the statistic is one of whole batches: these are then the
            same batches whatever the number of processes.
    """
    groups = [indices[begin : begin + unit] for begin in range(0, len(indices), unit)]
    return [index for group in groups[get_rank() :: get_world_size()] for index in group]


class ScoreReduction:
    """Where processes bring their sums, or what kept them from it: one call of `add_up` or `fail`.

    It takes two collectives: a small one of counts and failures, then one all-reduce of the sums,
    in place and without a copy. Sums that are kept on the CPU of a run on GPUs go there in pieces.
    """

    def __init__(self) -> None:
        self.over = False

    def add_up(self, sums: Sequence[Tensor], count: int) -> int:
        """Adds `sums` up in place over all processes.

        Args:
            sums: Flat tensors of one length on every process.
            count: Samples (or batches) in them.

        Returns:
            The count of all processes.

        Raises:
            ScoreError: If another process has failed; with its message.
        """
        reports = self._gather(count, '')
        for rank, (_, failure) in enumerate(reports):
            if failure:
                raise ScoreError(f'scoring failed on process {rank}: {failure}')
        for total in sums:
            for piece in _pieces(total):
                all_reduce(piece, 'sum')
        return sum(count for count, _ in reports)

    def fail(self, error: Exception) -> None:
        """Tells the others, unless they know; to be called before `error` ends this process."""
        if self.over or get_world_size() == 1:
            return
        # Said before the waiting: the others may be minutes from the end of their shares.
        MMLogger.get_current_instance().error(f'process {get_rank()} cannot score: {error}')
        self._gather(0, f'{type(error).__name__}: {error}')

    def _gather(self, count: int, failure: str) -> list[tuple[int, str]]:
        self.over = True
        return list(all_gather_object((count, failure)))


def _pieces(total: Tensor) -> tuple[Tensor, ...]:
    """Sums as they can be added up: whole, or in parts where mmengine makes a copy for that."""
    if get_world_size() == 1 or total.device.type == get_comm_device().type:
        return (total,)
    return torch.split(total, PIECE)
