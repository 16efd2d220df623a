"""Where `copied_linear` runs in C++ (`core.native`), and Python's part of it there.

The host's work is what an eager step on a GPU waits for, and a good part of a small model's step on
a CPU; most of what an adapter adds to it is Python between two operations. The bits are the same.

It is compiled beside the first training step on a machine, some 15 seconds of one core, and taken
as soon as it is there. ``CDRA_NATIVE=0`` in the environment keeps to Python, ``CDRA_NATIVE=1``
waits for the compiler, and takes C++ wherever products go through copies.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdra_mm.errors import ConfigError

from ..flat_layout import ALIGNMENT
from ..native import Building, NativeError, is_built, load_native
from . import compact_linear
from .block_ops import plainly, write_blocks, write_factor_gradients
from .joint_blocks import JointBlocks
from .kernel_choice import kernels_run

__all__ = ['NATIVE', 'VARIABLE', 'Native']

VARIABLE = 'CDRA_NATIVE'
LOOK = 0.5  # seconds between two looks at the compiler

Gradients = Callable[[Tensor, Tensor, bool, JointBlocks, list[Tensor]], list[Tensor]]


class Native:
    """The compiled module, as soon as it can be had."""

    def __init__(self) -> None:
        self._told: tuple[Any, ...] = ()
        self._module: Any = None
        self._asked: bool | None = None
        self._begun = self._over = False
        self._building: Building | None = None
        self._next_look = 0.0

    def tell(self, largest_block: int, gradients: Gradients) -> None:
        """What the module decides by, and what it asks Python for.

        Args:
            largest_block: See `copied_linear.LARGEST_BLOCK`.
            gradients: `copied_linear._gradients`, for what is rare.
        """
        self._told = (
            JointBlocks._fields, largest_block, compact_linear.SMALL_BLOCK, ALIGNMENT,
            _write_gradients, _write_copies, gradients,
            torch.cuda.is_current_stream_capturing,
        )  # fmt: skip
        if self._module is not None:
            self._module.set_up(*self._told)

    def take(self, device: torch.device, kept: bool) -> Any:
        """The module where it is to be used and is there, otherwise None.

        Args:
            device: Where the product is computed.
            kept: Whether by a copy that stays between forwards.

        Raises:
            ConfigError: If it was asked for and cannot be had, or ``CDRA_NATIVE`` is neither 0
                nor 1.
        """
        if not self._begun:
            self._begun = True
            self._asked = _asked()
            self._over = self._asked is False
        if self._over and self._module is None:
            return None
        if not (kept or self._asked or kernels_run(device)):
            return None
        if self._module is None:
            self._look(device)
        return self._module

    def there(self) -> Any:
        """The module where products are computed by it already, otherwise None."""
        return self._module

    def build_now(self) -> str:
        """Waits for the compiler, where there is something to compile: for who measures.

        Returns:
            Why the module is not there; '' where it is.
        """
        if _asked() is False:
            return f'{VARIABLE}=0'
        try:
            if not is_built():
                Building().wait()
        except NativeError as error:
            return str(error)
        return ''

    def _look(self, device: torch.device) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK
        try:
            if not self._is_built():
                return
            module = load_native()
            module.set_up(*self._told)
            self._module = module
        except NativeError as error:
            if self._asked:
                self._building, self._next_look = None, 0.0  # whoever goes on is told again
                raise ConfigError(f'{VARIABLE}=1: {error}') from error
            warnings.warn(
                f'training on {device} is slower than it could be: the C++ for adapted layers is '
                f'not used, {error}; {VARIABLE}=0 does without and says nothing',
                stacklevel=2,
            )
        self._over = True

    def _is_built(self) -> bool:
        if self._building is not None:
            return self._building.is_over()
        if is_built():
            return True
        # One process of a machine compiles; the others look for what it has made.
        if self._asked or os.environ.get('LOCAL_RANK', '0') == '0':
            self._building = Building()
            if self._asked:
                self._building.wait()
                return True
        return False


def _asked() -> bool | None:
    value = os.environ.get(VARIABLE, '').strip()
    if value not in ('', '0', '1'):
        raise ConfigError(
            f'{VARIABLE}={value!r}: expected 0 (never), 1 (wherever it can be) or nothing'
        )
    return None if value == '' else value == '1'


def _write_gradients(
    flat: Tensor,
    dy: Tensor,
    x: Tensor,
    gathered: bool,
    joint: JointBlocks,
    factors: Sequence[Tensor],
) -> Any:
    begins = joint.begins if gathered else ()
    with plainly(flat.device):
        return write_factor_gradients(flat, dy, x, begins, factors, joint.indices, joint.scales)


def _write_copies(flat: Tensor, copies: Sequence[Tensor], what: tuple[Any, ...]) -> Any:
    weights, _, *blocks = what
    with plainly(flat.device):
        return write_blocks(flat, copies, weights, *blocks)


NATIVE = Native()
