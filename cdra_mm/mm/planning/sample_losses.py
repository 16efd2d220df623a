"""The training loss of each sample of a batch, of any head and loss.

The backbone runs once per batch; the model's own ``loss`` then runs once per sample on that
sample's features, so any head and any loss (with ignored pixels, hard-example mining, auxiliary
heads) gives what a batch of one would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from cdra_mm.core.model.own_state import tensors_in
from cdra_mm.errors import ConfigError

from ..host.model_patches import with_features, with_forward
from .label_check import check_labels, named_loss
from .scoring_state import outputs_for_loss
from .unlabelled import Unlabelled

__all__ = ['per_sample_losses', 'prepared']


def per_sample_losses(model: BaseModel, data: Any, unlabelled: Unlabelled | None = None) -> Tensor:
    """The training loss of each sample of a batch, ``[B]``.

    Args:
        model: An OpenMMLab model with ``extract_feat`` and ``loss``.
        data: A collated batch, as the data loader gives it.
        unlabelled: Leaves samples without a label out.

    Raises:
        ConfigError: If the loss does not begin with ``extract_feat``, or its features are not
            of one sample each.
        DataError: See `check_labels`.
    """
    data = prepared(model, data)
    inputs, samples = data['inputs'], data['data_samples']
    features = model.extract_feat(inputs)
    _check_features(model, features, len(samples))
    losses = []
    # A batch of one needs no cutting: whatever the shapes are, they are that sample's.
    part = _slice if len(samples) > 1 else lambda whole, _: whole
    once = with_forward(model.backbone, _refuse_second_run(model))
    with once, outputs_for_loss(model):
        for n in range(len(samples)):
            mine = samples[n : n + 1]
            alone = with_features(model, lambda *_, n=n, **__: part(features, n))
            with alone, named_loss(model, mine):
                total, _ = model.parse_losses(model.loss(inputs[n : n + 1], mine))
            losses.append(total)
    return (unlabelled or Unlabelled()).stacked(model, losses, samples)


def _check_features(model: BaseModel, features: Any, count: int) -> None:
    """The features of a sample are cut out of those of its batch."""
    for tensor in tensors_in(features):
        if count > 1 and (tensor.dim() == 0 or len(tensor) != count):
            raise ConfigError(
                f'extract_feat of {type(model).__name__} gives features of shape '
                f'{tuple(tensor.shape)} for a batch of {count}: expected the sample as first '
                'dimension; give batch_size=1 to CDRAHook'
            )


def prepared(model: BaseModel, data: Any) -> Any:
    """A collated batch as the model's ``loss`` takes it, with labels that fit.

    Raises:
        DataError: See `check_labels`.
    """
    data = model.data_preprocessor(data, True)
    check_labels(model, data['data_samples'])
    for sample in data['data_samples']:
        if 'gt_score' in sample:  # one-hot integers, which only a mixing would have made floats
            sample.gt_score = sample.gt_score.float()
    return data


def _refuse_second_run(model: nn.Module) -> Callable[..., None]:
    """What a backbone does where the loss runs it, past the features of the sample."""

    def forward(*_: Any, **__: Any) -> None:
        raise ConfigError(
            f'the loss of {type(model).__name__} runs the backbone itself, as self-supervised '
            'pretraining does: CDRAHook scores models whose loss begins with extract_feat, such '
            'as segmentors and classifiers'
        )

    return forward


def _slice(features: Any, n: int) -> Any:
    if isinstance(features, Tensor):
        return features[n : n + 1]
    if isinstance(features, Mapping):
        return {key: _slice(value, n) for key, value in features.items()}
    if isinstance(features, list | tuple):
        parts = [_slice(value, n) for value in features]
        return type(features)(*parts) if hasattr(features, '_fields') else type(features)(parts)
    return features  # None, a size
