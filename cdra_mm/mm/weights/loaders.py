"""What lets mmengine read ``.safetensors`` and ``.npz`` files wherever it reads a checkpoint."""

from __future__ import annotations

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from cdra_mm.errors import CheckpointError

from .common import read_common, write_openmmlab
from .layouts import OPENMMLAB_BEIT, OPENMMLAB_SWIN, OPENMMLAB_VIT, recognise
from .reading import read_state_dict

__all__ = ['load_from_weight_file']

# mmengine compares these with the path as regular expressions, in reverse alphabetical order: the
# first must come before its own 'https://', those of other schemes before the second.
ADDRESSES = r'https?://[^?#]*\.(?:safetensors|npz)(?:[?#].*)?$'
PATHS = r'(?!\S*://).*\.(?:safetensors|npz)$'


@CheckpointLoader.register_scheme(prefixes=[ADDRESSES, PATHS], force=True)
def load_from_weight_file(
    filename: str, map_location: str | torch.device | None = None
) -> dict[str, dict[str, Tensor]]:
    """The loader that mmengine calls for such files.

    Args:
        filename: Path or address.
        map_location: The device to put the weights on.

    Returns:
        ``{'state_dict': weights}``: those of another project under mmpretrain's names without
        prefix, floating point ones as float32; all others as they are.

    Raises:
        CheckpointError: If the file is missing, damaged, or not whole.
    """
    weights = read_state_dict(filename)
    found = recognise(weights)
    if found is not None and found[0] not in (OPENMMLAB_VIT, OPENMMLAB_BEIT, OPENMMLAB_SWIN):
        try:
            common = read_common(weights)
            weights = write_openmmlab(common)
        except CheckpointError as error:
            raise CheckpointError(f'{filename}: {error}') from None
        print_log(
            f'{filename}: {len(weights)} weights of {common.layout.name} under mmpretrain names, '
            f'{len(common.dropped)} dropped',
            logger='current',
        )
    if map_location is not None:
        weights = {name: tensor.to(map_location) for name, tensor in weights.items()}
    return dict(state_dict=weights)
