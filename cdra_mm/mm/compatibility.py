"""What the original mmengine needs in order to work with today's torch.

From release 2.6 on ``torch.load`` reads nothing but tensors and plain types unless told
otherwise. Checkpoints of mmengine also hold the history of the logged values: its own
``HistoryBuffer`` and numpy arrays. mmengine 0.10.7, the last original release, does not tell
torch so, and no run can be resumed with it; the fork does (``get_torch_safe_globals``).
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.utils import digit_version

# The first release of torch whose default is weights_only=True.
STRICT_TORCH = '2.6'
# What HistoryBuffer stores of itself: its four functions, by name.
STATISTICS = ('min', 'max', 'current', 'mean')


def allow_mmengine_checkpoints() -> None:
    """Lets mmengine read its own checkpoint files again.

    Its loader of local files is registered anew, the way mmengine provides for. Nothing is done
    where mmengine or torch needs no help, and ``torch.load`` itself stays as it is.
    """
    helps_itself = hasattr(checkpoint, 'get_torch_safe_globals')
    if not helps_itself and digit_version(torch.__version__) >= digit_version(STRICT_TORCH):
        CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader of that name, with what its checkpoints hold allowed meanwhile.

    Args:
        filename: Path of the file.
        map_location: Where the tensors go, as in ``torch.load``.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        UnpicklingError: If it holds a type that could run code, or is no checkpoint.
    """
    with torch.serialization.safe_globals(checkpoint_types()):
        return checkpoint.load_from_local(filename, map_location)


def checkpoint_types() -> list[tuple[Callable[..., Any], str]]:
    """The types and functions in mmengine's checkpoints beyond torch's own.

    None of them can run foreign code, so a checkpoint still cannot bring any along.

    Returns:
        Pairs of what to call and the name that stands for it in the file, the form that
        ``torch.serialization.safe_globals`` takes. numpy's functions appear under the names
        that numpy 1 and numpy 2 write.
    """
    numbers = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    dtypes = {type(np.dtype(code)) for code in numbers} - {np.dtype}
    # Both are the functions that numpy itself puts into a pickle.
    rebuild_array = np.empty(0).__reduce__()[0]
    rebuild_number = np.float64(0).__reduce__()[0]
    types: list[tuple[Callable[..., Any], str]] = [
        (HistoryBuffer, f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'),
        # A function of a class is stored as getattr(class, name).
        (_statistic, 'builtins.getattr'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
    ]
    types += [(dtype, f'{dtype.__module__}.{dtype.__qualname__}') for dtype in dtypes]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        types += [(rebuild_array, f'{module}._reconstruct'), (rebuild_number, f'{module}.scalar')]
    return types


def _statistic(owner: type, name: str) -> Callable[..., Any]:
    """Stands in for ``getattr``, which could reach anything."""
    if owner is HistoryBuffer and name in STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(
        f'the checkpoint asks for {owner!r}.{name}, which no checkpoint of mmengine holds'
    )
