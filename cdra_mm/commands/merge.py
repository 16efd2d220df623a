"""Makes of a checkpoint with adapters what is to be shipped.

--format merged    a plain OpenMMLab checkpoint: the model of the config loads it strictly, without
                   this package, and runs at the speed of the base model (the default)
--format adapter   the adapter file: what is trained of the backbone, for cdra_mm.core.load_adapter
--format task      adapter and head in one file, for cdra_mm.core.MultiTask
--format peft      a LoRA: a folder that Hugging Face PEFT loads onto timm's model of the same base
--format peft-cdra the adapters as they are, for Hugging Face PEFT with cdra_mm.peft
--format onnx      the merged model, for onnxruntime

cdra merge cdra/demo work_dirs/demo/iter_300.pth demo_merged.pth
cdra merge cdra/demo work_dirs/demo/iter_300.pth demo.onnx --format onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cdra_mm.command_line import add_config_arguments
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint with adapters')
    parser.add_argument('out', help='the file to write; of the formats of PEFT: the folder')
    parser.add_argument(
        '--format',
        choices=['merged', 'adapter', 'task', 'peft', 'peft-cdra', 'onnx'],
        default='merged',
        dest='to',
    )
    parser.add_argument(
        '--names',
        choices=['timm', 'config'],
        help="peft, peft-cdra: names of timm's model, or of the backbone of the config (default: "
        "timm's where they are known)",
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='onnx: size of the images (default: the size that the model was made for)',
    )
    parser.add_argument(
        '--dtype',
        choices=['float32', 'float16', 'bfloat16'],
        help='task: type in which adapters and head are stored (default: as they were trained)',
    )
    parser.add_argument('--force', action='store_true', help='replace OUT where it exists')


def main(args: argparse.Namespace) -> None:
    """Writes the format asked for."""
    with heavy_imports():
        from cdra_mm.mm.export.formats import FORMATS, Export, check_options
        from cdra_mm.mm.inputs import check_weight_file
        from cdra_mm.mm.launch import load_config, prepare_config

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    check_weight_file(args.checkpoint)
    shape = tuple(args.shape) if args.shape else None
    asked = Export(cfg, args.checkpoint, Path(args.out), args.names, shape, args.dtype)
    check_options(asked, args.to, args.force)
    for line in FORMATS[args.to](asked):
        print(line)
