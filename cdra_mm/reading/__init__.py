"""The reader of files that others wrote: of torch, numpy and safetensors, and selection masks.

Nothing in a file is executed: a pickle is run by a machine of our own, which builds plain values
and inert records of what the file asks for. Nothing is allocated for what a file claims before it
is known to be there. Every fault is a `CheckpointError` of one line.
"""

from cdra_mm.reading.safetensors_file import SafetensorsFile, open_safetensors, read_safetensors

from .allowed_types import AllowedType, NamedFunction
from .mask_file import read_masks
from .numpy_file import read_npz
from .torch_file import read_torch

__all__ = [
    'AllowedType',
    'NamedFunction',
    'SafetensorsFile',
    'open_safetensors',
    'read_masks',
    'read_npz',
    'read_safetensors',
    'read_torch',
]
