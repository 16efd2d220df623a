"""Bias: every bias of the backbone is trained, nothing else.

Ben Zaken et al., *BitFit*, ACL 2022; Cai et al., *TinyTL*, NeurIPS 2020. The row "Bias" of
VPT (Jia et al., ECCV 2022) and of the papers after it.

VPT's code (KMnP/vpt) trains its rows by SGD with momentum 0.9, the rate and weight decay of a grid
for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and starts the
head's bias at -4.6. Here it is trained as all rows are (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cdra_mm.core import Plan, find_targets
from cdra_mm.errors import PlanError

from .base import Method, Request

__all__ = ['Bias']


@dataclass(frozen=True)
class Bias(Method):
    """The row "Bias", with the biases of patch embedding, norms and final norm.

    VPT's code trains every parameter whose name contains "bias". That is the same for
    plain vision transformers; for Swin and BEiT it would also take the tables of relative
    position *biases*, which are no biases of a layer: they stay frozen here. Biases are
    weights of the model: nothing has to be merged.
    """

    name: ClassVar[str] = 'bias'

    def plan(self, request: Request) -> Plan | None:
        """All biases, whole. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no bias.
        """
        backbone = request.backbone
        biases = {
            f'{path}.bias'.removeprefix('.'): module._parameters['bias']
            for path, module in backbone.named_modules()
            if module._parameters.get('bias') is not None
        }
        fused = {t.path for t in find_targets(backbone).values() if t.role == 'bias'}
        trained = {
            name: parameter.numel()
            for name, parameter in request.parameters().items()
            if name in biases or name in fused  # of q, k and v in one, or of q and v only
        }
        if not trained:
            raise PlanError(
                f'{type(backbone).__name__} has no bias that may be trained: use another method '
                'for this backbone'
            )
        return request.record(self, also_train=trained)
