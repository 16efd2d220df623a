"""Weights of other projects for the transformers of mmpretrain and mmseg.

Importing this package lets mmengine read ``.safetensors`` and ``.npz`` files and addresses wherever
it reads a checkpoint: ``init_cfg=dict(type='Pretrained', checkpoint='deit_tiny.safetensors')``. A
config asks for the import with ``custom_imports = dict(imports=['cdra_mm.mm.weights'])``.

==============  ==================================================================
`reading`       a file or address becomes a dict of tensors, nothing is executed
`layouts`       how each project names its weights: one entry a family
`orders`        what differs beyond names
`common`        a file's weights under the common names
`destinations`  which backbones take them: one entry a class
`positions`     positions learnt for another image size
`matching`      how a state dict fits a model
`conversion`    all of it together, and what runs when a backbone loads
`loaders`       what mmengine calls for files it cannot read itself
`architectures` the backbone that a file's shapes ask for
==============  ==================================================================
"""

from .common import read_common, write_openmmlab
from .conversion import Converted, compare, convert, convert_on_load
from .destinations import destination_of
from .loaders import load_from_weight_file
from .matching import Match, compare_weights, require_complete
from .reading import read_state_dict

__all__ = [
    'Converted',
    'Match',
    'compare',
    'compare_weights',
    'convert',
    'convert_on_load',
    'destination_of',
    'load_from_weight_file',
    'read_common',
    'read_state_dict',
    'require_complete',
    'write_openmmlab',
]
