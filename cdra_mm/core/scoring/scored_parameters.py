"""What a pass over the training data looks at: targets, and the parameters that they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cdra_mm.errors import ScoreError

from ..model.row_int8 import is_int8
from ..model.targets import find_targets, parameter_of, resolve, view_of
from .score_sums import Combine, ScoreSums

__all__ = ['ScoredParameters']


class ScoredParameters:
    """The targets of a pass, and each of their parameters once.

    Args:
        model: A plain model.
        targets: Names to look at. Default: `find_targets(model)`.

    Attributes:
        unique: The parameters by name; modules that share one share it under the first name.

    Raises:
        ScoreError: If a target is adapted, in int8 or on meta, or gradients are ruled out.
        PlanError: If a name does not fit the model.
    """

    def __init__(self, model: nn.Module, targets: Iterable[str] | None = None) -> None:
        if targets is None:
            self._targets = find_targets(model)
        else:
            self._targets = {name: resolve(model, name) for name in targets}
        for target in self._targets.values():
            if hasattr(type(model.get_submodule(target.module)), 'base_class'):
                raise ScoreError(
                    f'{target.module} is adapted: its plain weights no longer get their gradients; '
                    'score the model before its plan is applied, or merge and remove the adapters'
                )
        parameters = {t.path: parameter_of(model, t) for t in self._targets.values()}
        if torch.is_inference_mode_enabled():
            raise ScoreError(
                'torch.inference_mode() is on, in which there are no gradients to score by: call '
                'this outside of it (torch.no_grad() does no harm)'
            )
        empty = [path for path, parameter in parameters.items() if parameter.is_meta]
        if empty:
            raise ScoreError(
                f'{empty[0]} is on meta, without values: load the pretrained weights before they '
                'are scored'
            )
        small = [path for path, parameter in parameters.items() if is_int8(parameter)]
        if small:
            raise ScoreError(
                f'{small[0]} is kept in int8, which gets no gradient: score the base in full '
                'precision, before quantize_base or after restore_base'
            )
        first: dict[int, str] = {}
        for path, parameter in parameters.items():
            first.setdefault(id(parameter), path)
        self._name_of = {path: first[id(parameter)] for path, parameter in parameters.items()}
        self.unique = {p: parameters[p] for p in parameters if self._name_of[p] == p}

    def averaged(
        self,
        sums: ScoreSums,
        count: int,
        combine: Combine | None,
        *,
        what: str = 'gradients',
        unit: str = 'samples',
    ) -> dict[str, Tensor]:
        """The end of a pass: sums of all processes, divided by their number.

        Args:
            sums: By the names of `unique`; overwritten.
            count: What they are over, in this process.
            combine: See `estimate_scores`.
            what: What an error calls that of which nothing was found.
            unit: What is counted.

        Returns:
            Means by target, views in the targets' shapes.

        Raises:
            ScoreError: If nothing was counted, or all is zero.
        """
        if combine is not None:
            count = combine(sums.flat, count)
        if not count:
            raise ScoreError('no sample to score: `batches` is empty; give at least one batch')
        for total in sums.flat:
            total.div_(count)
        if not any(bool(total.any()) for total in sums.flat):
            raise ScoreError(
                f'the {what} of all {len(self._targets)} targets are exactly zero over {count} '
                f'{unit}: the loss does not depend on the backbone. Is the last layer of the head '
                'all zeros, are all labels ignored, or is the backbone run under no_grad?'
            )
        return {
            name: view_of(target, sums[self._name_of[target.path]])
            for name, target in self._targets.items()
        }

    @contextmanager
    def requiring_grad(self) -> Iterator[None]:
        """All of `unique` require grad; then those that were frozen are again."""
        frozen = [parameter for parameter in self.unique.values() if not parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
