"""The supervised contrastive loss that GPS scores with: two views of each image, no head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cdra_mm.errors import ConfigError

from .label_check import check_labels

__all__ = ['TwoViews', 'contrastive_loss', 'join_views', 'supervised_contrastive']

TEMPERATURE = 0.07  # of Khosla et al. and of GPS


def supervised_contrastive(
    features: Tensor, labels: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """The supervised contrastive loss (Khosla et al., NeurIPS 2020, Eq. 2).

    With unit features z, the others of the same label P(i) and all others A(i)::

        mean_i  -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / t) / sum_{a in A(i)} exp(z_i z_a / t) )

    Args:
        features: ``[N, E]``, of any length.
        labels: ``[N]``; each at least twice.
        temperature: t.

    Returns:
        A scalar.
    """
    unit = F.normalize(features.float(), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.t() / temperature).masked_fill(itself, float('-inf'))
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    same = (labels[:, None] == labels[None, :]) & ~itself
    return -(log_probability.where(same, 0).sum(1) / same.sum(1)).mean()


def contrastive_loss(model: BaseModel, data: Any) -> tuple[Tensor, int]:
    """The mean loss of a batch of image pairs, and the number of images.

    The features are the backbone's last output: the class token, or the mean of the map.

    Args:
        model: An OpenMMLab classifier.
        data: A collated batch, the two views of each image side by side.

    Raises:
        ConfigError: If the samples do not have one label each.
        DataError: See `check_labels`.
    """
    data = model.data_preprocessor(data, True)
    samples = data['data_samples']
    for sample in samples:
        if 'gt_label' not in sample or sample.gt_label.numel() != 1:
            raise ConfigError(
                "loss='supervised_contrastive' needs one label per image, the samples of "
                f"{type(model).__name__} have none or several: use method=dict(type='gps', "
                "loss='task')"
            )
    check_labels(model, samples)
    labels = torch.cat([sample.gt_label.reshape(1) for sample in samples])
    features = _pooled(model.extract_feat(data['inputs']))
    return supervised_contrastive(features, labels.to(features.device)), len(samples) // 2


def _pooled(features: Any) -> Tensor:
    """The last output as ``[B, E]``."""
    while not isinstance(features, Tensor):
        features = features[-1]  # of the levels the last; of (map, class token) the token
    if features.dim() == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.dim() == 3 else features


class TwoViews(Dataset[Any]):
    """Each sample of two data sets at once: twice the same images, augmented differently."""

    def __init__(self, first: Dataset[Any], second: Dataset[Any]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.first[index], self.second[index]


def join_views(collate: Callable[[Sequence[Any]], Any], pairs: Sequence[tuple[Any, Any]]) -> Any:
    """Collates pairs with the views of each image side by side."""
    return collate([view for pair in pairs for view in pair])
