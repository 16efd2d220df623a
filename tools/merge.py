"""Merges the adapters of a checkpoint into its base weights.

The result is a plain OpenMMLab checkpoint: the model of the config loads it strictly,
without this package, and runs at the speed of the base model.

python tools/merge.py configs/cdra/demo.py work_dirs/demo/iter_300.pth demo_merged.pth
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cdra_mm.command_line import add_config_arguments, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint with adapters')
    parser.add_argument('out', help='where the merged checkpoint goes')
    parser.add_argument('--force', action='store_true', help='replace OUT where it exists')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from cdra_mm.core import write_atomically
    from cdra_mm.mm.inputs import check_weight_file
    from cdra_mm.mm.launch import load_config, prepare_config
    from cdra_mm.mm.merging import merge_checkpoint

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    check_weight_file(args.checkpoint)
    check_out(Path(args.out), args.force)
    merged = merge_checkpoint(cfg, args.checkpoint)
    write_atomically(args.out, lambda temporary: save(merged.checkpoint, temporary))
    before, after = (Path(path).stat().st_size / 2**20 for path in (args.checkpoint, args.out))
    print(
        f'{merged.num_adapters} adapters merged; largest difference of an output on a random image '
        f'{merged.difference:.1e} (outputs up to {merged.scale:.3g})'
    )
    print(
        f'{args.out}: {after:.2f} MiB (with adapters, without the frozen base: {before:.2f} MiB); '
        'loads strictly into the plain model'
    )


def save(checkpoint: dict, path: str) -> None:
    import torch

    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error)) from error


def check_out(out: Path, force: bool) -> None:
    from cdra_mm.core import CheckpointError

    if out.is_dir() or (out.exists() and not force):
        what = 'is a folder' if out.is_dir() else 'exists (--force replaces it)'
        raise CheckpointError(f'{out} {what}: nothing was written')
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise CheckpointError(f'{out} cannot be written: {folder} is not a writable folder')


if __name__ == '__main__':
    run(main)
