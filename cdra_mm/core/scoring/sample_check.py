"""Whether the entries of an activation belong to the samples that they are taken for.

A scored operation takes the first dimension of its activations for the samples,
``[B, ...]`` or ``[B * windows, ...]``. Nothing in a shape proves that: tokens first,
two dates of an image stacked as a batch of 2B, or a table that is no sample's fit as well
and would give wrong scores. So the losses are asked: where one sample's loss alone is
differentiated, its gradient must be exactly zero at the entries of all other samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

__all__ = ['SampleCheck']


class SampleCheck:
    """What is known of the competing parameters' activations; filled by backward passes.

    Attributes:
        apart: Names whose activations were seen to keep the samples apart.
        mixed: Names whose activations do not, with the reason.
        woken: Names that are in neither, but had a gradient when squares were added.
    """

    def __init__(self) -> None:
        self.apart: set[str] = set()
        self.mixed: dict[str, str] = {}
        self.woken: set[str] = set()

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these names are known to keep the samples apart, or not to."""
        return all(name in self.apart or name in self.mixed for name in names)

    def see_sample(self, names: Sequence[str], grad: Tensor, size: int, sample: int) -> None:
        """Looks at the gradient of one sample's loss.

        Args:
            names: Parameters that the operation scores.
            grad: Gradient of its output, in the operation's own shape.
            size: B.
            sample: The sample whose loss was differentiated.
        """
        if grad.dim() < 2 or grad.shape[0] % size:
            self._mix(names, f'used on {_shape(grad)} of a batch of {size}')
            return
        # A comparison is false for what is not a number: that is for the finiteness check to say.
        has = (grad.reshape(size, -1).abs() > 0).any(1)
        own = bool(has[sample])
        has[sample] = False
        if bool(has.any()):
            self._mix(
                names,
                f'used on {_shape(grad)} of a batch of {size}, where samples do not lie one by one',
            )
        elif own:  # of a gradient that is zero everywhere nothing can be said
            self.apart.update(names)

    def see_shape(self, names: Sequence[str], grad: Tensor, size: int) -> None:
        """Looks at a gradient of a mean loss, which no sample can be told from: at its shape."""
        if grad.shape[0] == size and size not in grad.shape[1:-1]:
            self.apart.update(names)
            return
        self._mix(
            names,
            f'used on {_shape(grad)} of a batch of {size}: a mean loss does not tell which of them '
            'belong to which sample',
        )

    def _mix(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self.mixed.setdefault(name, reason)


def _shape(grad: Tensor) -> str:
    return f'activations [{grad.shape[0] if grad.dim() else ""}, ...]'
