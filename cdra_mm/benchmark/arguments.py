"""The command line of the benchmark: its options and what they may be.

Loads neither torch nor timm, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

__all__ = ['BENCHMARKS', 'BY_NAME_ALONE', 'MODELS', 'PEER_NAMES', 'STARTS', 'nearest', 'parser']

BENCHMARKS = (
    'scores',
    'step',
    'launches',
    'memory',
    'bases',
    'strategies',
    'inference',
    'planning',
    'growth',
)
# What needs OpenMMLab is not in `all`.
BY_NAME_ALONE = ('start',)
STARTS = ('camvid', 'dinov2')
MODELS = ('ViT-Ti', 'ViT-S', 'ViT-B', 'ViT-L')
PEER_NAMES = ('loop', 'vmap', 'opacus', 'backpack', 'peft', 'mmpretrain')
ENTRIES = ('86M', '304M', '1.1B', '6.7B')  # the last takes 27 GB
# What a setting is where it is not given: something that takes minutes.
DEFAULTS: dict[str, dict[str, Any]] = {
    'cpu': {
        'model': 'ViT-S',
        'image_size': [224],
        'batch': [8],
        'dtype': 'fp32',
        'repeats': 5,
        'warmup': 1,
        'threads': 1,
        'entries': ['86M', '304M', '1.1B'],
    },
    'cuda': {
        'model': 'ViT-B',
        'image_size': [224],
        'batch': [32, 64],
        'dtype': 'bf16',
        'repeats': 30,
        'warmup': 5,
        'threads': None,
        'entries': ['86M', '304M', '1.1B'],
    },
}


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The parser; values are checked by `command`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument('benchmark', choices=[*BENCHMARKS, *BY_NAME_ALONE, 'all'])
    made.add_argument('--json', metavar='FILE', help='write the results there, after each part')
    made.add_argument(
        '--model', metavar='NAME', help=f'{", ".join(MODELS)} (CPU: ViT-S, GPU: ViT-B)'
    )
    made.add_argument(
        '--image-size', nargs='+', type=int, metavar='PX', help='sides of the images (224)'
    )
    made.add_argument(
        '--batch', nargs='+', type=int, metavar='N', help='batch sizes (CPU: 8, GPU: 32 64)'
    )
    made.add_argument(
        '--dtype', choices=['fp32', 'bf16'], help='bf16 is autocast (CPU: fp32, GPU: bf16)'
    )
    made.add_argument(
        '--device', choices=['cpu', 'cuda'], help='cuda where there is a GPU, otherwise cpu'
    )
    made.add_argument('--repeats', type=int, metavar='N', help='rounds (CPU: 5, GPU: 30)')
    made.add_argument('--warmup', type=int, metavar='N', help='rounds before them (CPU: 1, GPU: 5)')
    made.add_argument('--threads', type=int, metavar='N', help='threads of PyTorch (CPU: 1)')
    made.add_argument(
        '--blocks',
        nargs='+',
        metavar='KIND',
        default=['paper', 'spt'],
        help="block sizes: paper, spt, or a file of a ViT-B's masks, PATH.npz or PATH.npz@BUDGET",
    )
    made.add_argument(
        '--peers',
        metavar='LIST',
        default=','.join(PEER_NAMES),
        help=f'what to compare with, separated by commas: {",".join(PEER_NAMES)}, or none; '
        'what is not installed is skipped',
    )
    made.add_argument(
        '--entries', nargs='+', metavar='N', help=f'sizes for planning: {" ".join(ENTRIES)}'
    )
    made.add_argument(
        '--runs', nargs='+', choices=STARTS, default=list(STARTS), help='whose start is measured'
    )
    made.add_argument('--seed', type=int, default=0, metavar='N')
    return made


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that only differs in case, or None.

    Example:
        >>> nearest('vit-b', ['ViT-B']), nearest('vit-x', ['ViT-B'])
        ('ViT-B', None)
    """
    return next((name for name in known if name.lower() == word.lower()), None)
