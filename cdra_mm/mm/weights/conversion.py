"""The weights of any known project under the names of a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError

from .common import HINTS, hint_for, read_common, write_as
from .destinations import DESTINATIONS, Destination, destination_of
from .layouts import OWN_TABLE, SHARED_TABLE, recognise
from .matching import Match, compare_weights, list_names, require_complete
from .positions import check_grid
from .reading import unwrap

__all__ = [
    'Converted',
    'compare',
    'convert',
    'convert_on_load',
]

# What a backbone may do without: the norm behind the last block, and the class token.
SPARED = re.compile(r'(?:norm|fc_norm|norm\d+)\.(?:weight|bias)|cls_token')
# What to say of own weights that the file lacks or has too many.
OWN_HINTS = {
    r'patch_embed\.projection\.bias': 'set patch_bias=True for the backbone',
    r'layers\.\d+\.ffn\.w.*': "set layer_cfgs=dict(ffn_type='swiglu_fused') for the backbone",
    r'.*gamma.*': 'set layer_scale_init_value for the backbone',
}


@dataclass(frozen=True)
class Converted:
    """Weights under a backbone's own names.

    Attributes:
        source: What the file holds.
        destination: Package and class of the backbone.
        weights: The weights, without a prefix. ``pos_embed`` keeps the file's image size where
            the backbone resizes it.
        dropped: Names of what the backbone has no use for.
        unplaced: Common names of what it has no place for.
        match: How the weights fit the backbone.
    """

    source: str
    destination: str
    weights: dict[str, Tensor]
    dropped: tuple[str, ...]
    unplaced: tuple[str, ...]
    match: Match

    def require_whole(self) -> None:
        """Raise unless the backbone takes all of the file, and the file fills the backbone.

        Raises:
            CheckpointError: If a weight has no place, is missing or has another shape.
        """
        what = f'{self.source} into {self.destination}'
        if self.unplaced:
            name = self.unplaced[0]
            raise CheckpointError(
                f'{what}: {len(self.unplaced)} weights have no counterpart there (first: {name}'
                f'{hint_for([name], HINTS)}). {self.match}'
            )
        wrong = (*self.match.unexpected, *self.match.missing)
        require_complete(self.match, f'{what}{hint_for(wrong, OWN_HINTS)}')


def compare(state_dict: Mapping[str, Any], backbone: nn.Module) -> Converted:
    """Weights of a known project under the names of a backbone, whether they fit or not.

    Args:
        state_dict: The file's weights under its own names.
        backbone: One of `DESTINATIONS`; it is left as it is.

    Raises:
        CheckpointError: If the backbone's class is unknown, or the file is not understood (see
            `read_common`).
    """
    destination = destination_of(backbone)
    if destination is None:
        raise CheckpointError(
            f'{type(backbone).__name__} takes no weights of other projects: expected one of '
            f'{", ".join(DESTINATIONS)}'
        )
    common = read_common(state_dict)
    fitting, spared = _fit(common.weights, backbone, destination)
    weights, unplaced = write_as(fitting, destination.layout)
    if not unplaced:
        destination.resize(backbone, weights, '')
    # Buffers follow from the architecture; a strict load wants them.
    buffers = dict(backbone.named_buffers())
    weights |= {name: tensor for name, tensor in buffers.items() if name not in weights}
    match = compare_weights(
        backbone, weights, resized=destination.resized, optional=destination.optional
    )
    return Converted(
        source=common.layout.name,
        destination=destination.name,
        weights=weights,
        dropped=(*common.dropped, *spared),
        unplaced=unplaced,
        match=match,
    )


def convert(state_dict: Mapping[str, Any], backbone: BaseModule) -> Converted:
    """Weights of a known project under the names of a backbone that takes them whole.

    Args:
        state_dict: The file's weights under its own names.
        backbone: One of `DESTINATIONS`; it is left as it is.

    Raises:
        CheckpointError: As `compare` and `Converted.require_whole` do, and if positions of
            another image size cannot be resized.
    """
    converted = compare(state_dict, backbone)
    converted.require_whole()
    own = backbone.state_dict()
    for name in DESTINATIONS[converted.destination].resized:
        given = converted.weights.get(name)
        if given is not None and given.shape != own[name].shape:
            check_grid(name, given.shape[1], backbone.num_extra_tokens)
    return converted


def _fit(
    weights: Mapping[str, Tensor], backbone: nn.Module, destination: Destination
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without what the backbone spares, and what that is."""
    own = backbone.state_dict().keys()
    layout = destination.layout
    fitting = dict(weights)
    spared = [
        name for name in weights if SPARED.fullmatch(name) and layout.own_name(name) not in own
    ]
    for name in spared:
        del fitting[name]
    count = fitting['pos_embed'].shape[1] if 'pos_embed' in fitting else 0
    if 'cls_token' in spared and isqrt(count) ** 2 != count:
        fitting['pos_embed'] = fitting['pos_embed'][:, 1:]
    tables = [f'blocks.{i}.{OWN_TABLE.partition("#.")[2]}' for i in range(len(own))]
    tables = [name for name in tables if layout.own_name(name) in own]
    if SHARED_TABLE in fitting and tables:
        # BEiT's pretraining shares one table between all blocks, its fine-tuning starts from it.
        table = fitting.pop(SHARED_TABLE)
        fitting |= {name: table.clone() for name in tables}
    return fitting, spared


def convert_on_load(backbone: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Gives the weights of another project the backbone's names, in a state dict being loaded.

    Weights under the backbone's own names stay as they are, but for positions of another image
    size that the backbone would not resize.

    Args:
        backbone: The backbone that is about to load; of any class.
        state_dict: Changed in place.
        prefix: Prefix of the backbone's keys.

    Raises:
        CheckpointError: As `convert` does, and if no name is the backbone's.
    """
    destination = destination_of(backbone)
    given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if destination is None or not given:
        return
    found = recognise(given)
    own = dict(backbone.named_parameters())
    if found == (destination.layout, '') or own.keys() <= given.keys():
        destination.resize(backbone, state_dict, prefix)
        return
    if found is None and unwrap(given) is given and own.keys() & given.keys():
        return
    converted = convert(given, backbone)
    for name in given:
        del state_dict[prefix + name]
    state_dict.update((prefix + name, tensor) for name, tensor in converted.weights.items())
    print_log(
        f'{converted.source} into {converted.destination}: {converted.match}; '
        f'{len(converted.dropped)} dropped{list_names(converted.dropped)}',
        logger='current',
    )
