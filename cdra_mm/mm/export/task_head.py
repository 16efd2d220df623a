"""What an OpenMMLab model has outside of its backbone, as the head of a task."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from ..backbone import find_backbone

__all__ = ['ModelHead', 'head_of']


class ModelHead(nn.Module):
    """Neck and heads of a model, called with what its backbone gives.

    It is the model itself behind a backbone that hands on its input, so what lies between backbone
    and logits is the model's own. `state_dict` has the model's names.

    Args:
        model: The model; its parameters are shared, it is left as it is.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        rest = copy.copy(model)
        rest._modules = {**model._modules, 'backbone': nn.Identity()}
        self.__dict__['_rest'] = rest  # its parts are this module's own, under their names
        self._modules |= {key: part for key, part in rest._modules.items() if key != 'backbone'}
        self._parameters |= model._parameters
        self._buffers |= model._buffers
        self._non_persistent_buffers_set |= model._non_persistent_buffers_set

    def forward(self, features: Any) -> Any:
        """The logits of the features: ``[B, classes]``, or ``[B, classes, h, w]`` of a segmentor.

        A segmentor's are as fine as its head gives them, not yet resized to the image.
        """
        rest: Any = self.__dict__['_rest']
        return rest(features, mode='tensor')


def head_of(model: BaseModel) -> ModelHead:
    """The head of a model, on the model's own parameters.

    Raises:
        ConfigError: If the model has no backbone.
    """
    find_backbone(model)
    return ModelHead(model)
