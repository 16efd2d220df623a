"""Gives a weight file of another project the names of an OpenMMLab backbone.

Reads DINOv2, DeiT, MAE, timm, Google (.npz), BEiT, Swin, mmpretrain and mmseg files; writes
{'state_dict': ...}, or plain .safetensors by the ending of OUT, which the stock backbone loads
strictly: init_cfg=dict(type='Pretrained', checkpoint=OUT).

cdra convert dinov2_vits14_pretrain.pth dinov2_small.pth
cdra convert ViT-B_16.npz vit_base.pth --to mmseg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cdra_mm.heavy_imports import heavy_imports

SHOWN = 5  # names of each list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument('input', metavar='IN', help='weight file, or its http(s) address')
    parser.add_argument('out', metavar='OUT', help='.pth or .safetensors file to write')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--config', help='take the backbone of this config, with its image size')
    where.add_argument(
        '--to',
        choices=['mmpretrain', 'mmseg'],
        default='mmpretrain',
        help='build the backbone that the file asks for, of this package (default: mmpretrain)',
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='write what fits where not all does'
    )
    parser.add_argument('--force', action='store_true', help='replace OUT where it exists')


def main(args: argparse.Namespace) -> None:
    """Converts."""
    with heavy_imports():
        from cdra_mm.errors import CheckpointError
        from cdra_mm.mm.weights import compare, convert, read_common, read_state_dict
        from cdra_mm.storage import write_atomically

    _check_out(args)
    state_dict = read_state_dict(args.input)
    try:
        common = read_common(state_dict)
        backbone, described = _build_backbone(args, common)
        converted = compare(state_dict, backbone)
        print(f'{args.input}: {converted.source}\n{described}')
        _report(converted)
        if not args.allow_partial:
            convert(state_dict, backbone)
        elif not converted.match.matched:
            raise CheckpointError('nothing in it fits the backbone')
    except CheckpointError as error:
        raise CheckpointError(f'{args.input}: {error}') from None

    # The backbone's own loading resizes positions; what it then holds is what is written.
    left = {*converted.match.missing, *converted.match.reshaped}
    fits = {name: converted.weights[name] for name in converted.match.matched}
    backbone.load_state_dict(fits, strict=False)
    state = backbone.state_dict().items()
    weights = {name: tensor.contiguous() for name, tensor in state if name not in left}
    write_atomically(args.out, lambda temporary: _save(weights, Path(args.out), temporary))
    size = Path(args.out).stat().st_size / 2**20
    print(f'{args.out}: {len(weights)} tensors for {converted.destination}, {size:.1f} MiB')


def _build_backbone(args: argparse.Namespace, common: Any) -> tuple[Any, str]:
    """The backbone, and a line that says which."""
    from mmengine.registry import MODELS, DefaultScope

    from cdra_mm.errors import ConfigError
    from cdra_mm.mm.launch import load_config, plain_config, prepare_config
    from cdra_mm.mm.weights.architectures import backbone_config

    if args.config:
        cfg = plain_config(prepare_config(load_config(args.config)))
        config = (cfg.get('model') or {}).get('backbone')
        if config is None:
            raise ConfigError(f'{args.config} has no model.backbone')
        described, scope = f'backbone of {args.config}: {config.type}', cfg.get('default_scope')
    else:
        config = backbone_config(common, args.to)
        described, scope = f'backbone: {config}', args.to
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config), described


def _report(converted: Any) -> None:
    """Counts and first names of what fits and what does not."""
    from cdra_mm.mm.weights.matching import list_names

    match = converted.match
    lists = {
        'matched': match.matched,
        'missing': match.missing,
        'unexpected': (*converted.unplaced, *match.unexpected),
        'of another shape': match.reshaped,
        'left as initialised': match.initial,
        'dropped': converted.dropped,
    }
    for label, names in lists.items():
        print(f'  {len(names):4d} {label}{list_names(names, SHOWN)}')


def _save(weights: dict[str, Any], out: Path, temporary: str) -> None:
    import torch
    from safetensors.torch import save_file

    if out.suffix.lower() == '.safetensors':
        save_file(weights, temporary)
    else:
        torch.save({'state_dict': weights}, temporary)


def _check_out(args: argparse.Namespace) -> None:
    from cdra_mm.errors import CheckpointError
    from cdra_mm.mm.export.destination import check_destination, is_weights

    out = Path(args.out)
    if out.suffix.lower() not in ('.pth', '.pt', '.safetensors'):
        raise CheckpointError(f'{out}: expected a name that ends in .pth or .safetensors')
    inputs = [('the file to convert', args.input), ('the config', args.config or '')]
    check_destination(
        out,
        [(what, path) for what, path in inputs if path],
        force=args.force,
        what='file of weights alone',
        is_own=is_weights,
    )
