"""Speed and memory of scoring, training, inference and planning: ratios to limits and to peers.

Needs torch, safetensors and timm, but no OpenMMLab; peft, Opacus, BackPACK and mmpretrain are
compared with where they are installed (pip install 'cdra-mm[bench]'). Random weights, nothing is
downloaded.

python tools/benchmark.py all --json work_dirs/benchmark.json
python tools/benchmark.py step --model ViT-B --batch 32 64 --blocks paper spt MASKS.npz
"""

from __future__ import annotations

from cdra_mm.benchmark.arguments import parser
from cdra_mm.command_line import run


def main() -> None:
    arguments = parser(__doc__).parse_args()

    from cdra_mm.benchmark import command

    command.main(arguments)


if __name__ == '__main__':
    run(main)
