#!/usr/bin/env python
"""Run the grid of a table and print it: methods x tasks x seeds, each a run of tools/train.py.

    python tools/tables.py vtab                                    the paper's Table 1
    python tools/tables.py fgvc --methods cdra lora --seeds 0      a part of Table 2
    python tools/tables.py study_cpu --jobs 2                      small models in memory, on a CPU
    python tools/tables.py six_tasks --devices cpu --jobs 2        two runs at a time on a CPU
    python tools/tables.py vtab --devices 0 1 2 3                  a run on each of four GPUs
    python tools/tables.py vtab --dry-run                          what would run, and how
    python tools/tables.py vtab --show --format latex              what is done so far
    python tools/tables.py study_cpu --show --report --against lora --tasks camvid vnc_em   in pairs
    python tools/tables.py cost --methods full lora cdra           Table 8: time and memory

Where the grid declares a search, every method tries its settings on the validation split; only then
is it trained with the best of them, and tested once (--no-search: the configs' own settings).

Runs that are done are never run again: stop with Ctrl-C and give the same command to go on. A run
that broke off resumes from its last checkpoint; one that fails is shown with the last line of its
log and does not stop the others, and the exit code is then 2. Every run has a folder,
DIR/METHOD/TASK/RUN, which refuses a run with other settings; a change inside a config is not seen.

Trainings and tests are forked from one process that has imported torch and OpenMMLab for all of
them, which saves each some ten seconds; --cold starts each from nothing, and a --launcher does.

Beside the table stand report.md and report.json: means, spreads and ranks over tasks, differences
from one row in pairs of task and seed, choices at an edge of what was tried; and frontier.png.

The grids are configs/tables/*.py; how one is written is said in cdra_mm/tables/grid_file.py.
A study in memory (study_cpu; cdra_mm/tables/small_file.py) trains a small model on images that are
held there, without configs of OpenMMLab: a run is a line in DIR/TASK.jsonl.
Mixed precision: --cfg-options optim_wrapper.type=AmpOptimWrapper optim_wrapper.loss_scale=dynamic
"""

from __future__ import annotations

from pathlib import Path

from cdra_mm.command_line import run
from cdra_mm.tables.study_options import parser


def main() -> None:
    arguments = parser(__doc__).parse_args()

    from cdra_mm.tables import cost, study

    main_of = cost.main if arguments.table == 'cost' else study.main
    main_of(arguments, Path(__file__).resolve().parent)


if __name__ == '__main__':
    run(main)
