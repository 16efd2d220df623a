"""GPS: of every neuron its most sensitive input connections (Zhang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cdra_mm.core import Plan, SparseMatrix, Vector
from cdra_mm.errors import PlanError
from cdra_mm.settings import count, setting

from .base import Method, Request

__all__ = ['GPS']


@dataclass(frozen=True)
class GPS(Method):
    """Gradient-based Parameter Selection (Zhang et al., CVPR 2024, Section 3).

    Of every row of every matrix of the blocks the k entries with the largest
    ``|gradient|`` are trained, all biases and the head whole; norms, tokens and
    embeddings stay frozen. It merges into plain weights.

    Where the released code (github.com/FightingFighting/GPS) and this differ:

    - The code scores on the whole training set, here on the hook's `num_samples` of it. As there
      the gradients of the batches' losses are added up and an entry's score is the magnitude of
      the sum (``statistic='summed'``), over augmented views. Averaged squares of the batches
      (``statistic='per_batch'``), the default before, pick another connection in 44 % of the rows:
      two plans of ``cdra plan cdra/deit_tiny_caltech101`` on healthy weights at 96 pixels, with
      ``num_samples=256, batch_size=32``. A run that began with them goes on with this setting in
      its config.
    - The code also trains k entries of every filter of the patch embedding, 768 of
      ViT-B/16's 167 424 parameters. Here the patch embedding's weight is frozen, as
      for every method; 166 656 are left.
    - The code scores in training mode, under autocast; here dropout and drop path are off.
    - The code's scripts choose for each data set: k is 2 for Camelyon and 1 for the other tasks of
      VTAB-1k; 2, 20, 1, 15, 1 for CUB, NABirds, Flowers, Cars and Dogs (``configs/tables`` has
      these); the rate is 3e-4 to 1e-2 on VTAB-1k and 1e-4 to 3e-3 on FGVC, the batch 16, 32
      or 64, drop path 0 to 0.2. They train by Adam without weight decay, behind 10 epochs of
      warm-up, on images normalised with mean and standard deviation 0.5, from AugReg's weights, and
      report the best test epoch. On FGVC they train on train and val, as ``--final`` does. The
      configs here train every method alike, see docs/methods.md.
    - Ties go to the lower index.

    Args:
        k: Input connections of every neuron.
        loss: What is differentiated. ``'supervised_contrastive'`` (Khosla et al.,
            NeurIPS 2020, of two augmented views of each image) needs one label per
            image, which segmentors do not have; ``'task'`` is the training loss.
    """

    name: ClassVar[str] = 'gps'
    needs_scores: ClassVar[bool] = True

    k: int = count(1)
    loss: str = setting('supervised_contrastive', choices=('supervised_contrastive', 'task'))

    @property
    def statistic(self) -> str:
        """See `Method.statistic`."""
        return 'summed'

    @property
    def score_loss(self) -> str:
        """See `Method.score_loss`."""
        return self.loss

    def plan(self, request: Request) -> Plan | None:
        """See `Method.plan`.

        Raises:
            PlanError: If a matrix has fewer than k columns.
        """
        matrices = {name: score for name, score in request.scores.items() if score.dim() == 2}
        sparse = tuple(self._selected(name, score) for name, score in matrices.items())
        return request.record(
            self,
            sparse=sparse,
            vectors=tuple(_biases(request)),
            num_competing=sum(score.numel() for score in matrices.values()),
            num_sensitive=sum(matrix.num_params for matrix in sparse),
        )

    def _selected(self, name: str, score: Tensor) -> SparseMatrix:
        rows, cols = score.shape
        if self.k > cols:
            raise PlanError(f'{name} has {cols} columns: expected k={self.k} to be at most that')
        at = torch.arange(cols, device=score.device)
        starts = torch.arange(rows, device=score.device) * cols
        left = score.clone()
        chosen = []
        for _ in range(self.k):
            # Of equal entries the first: what topk and argmax return is up to the device.
            equal = left == left.amax(1, keepdim=True)
            first = torch.where(equal, at, cols).amin(1, keepdim=True)
            left.scatter_(1, first, -1)  # scores are not negative
            chosen.append(starts + first.squeeze(1))
        indices = torch.cat(chosen).sort().values.tolist()
        return SparseMatrix(name, (rows, cols), tuple(indices))


def _biases(request: Request) -> Iterator[Vector]:
    """Biases and layer scales of the blocks that compete, and biases of the layers outside."""
    targets = request.targets()
    lengths = {
        target.name: target.shape[0]
        for target in targets.values()
        if target.role in ('bias', 'scale') and target.name in request.scores
    }
    for path, module in request.backbone.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is not None:
            name = f'{path}.bias' if path else 'bias'
            if name not in targets:
                lengths.setdefault(name, len(module.bias))
    for name, length in lengths.items():
        if name not in request.withheld:
            yield Vector(name, length, None, length)
