"""Runs a Python program on a GPU that is not there: its calls are counted, nothing is launched.

    python -m tools.pretended_gpu [--values] SCRIPT ARGUMENTS...
    python -m tools.pretended_gpu [--values] -m MODULE ARGUMENTS...

from the root of a checkout. Torch's CUDA build runs as it is, but CUDA's runtime and driver and
cuBLAS are replaced by a small library, built once (a C compiler; Linux on x86-64, torch for CUDA
13). Memory of the GPU is the host's. At the end a line tells how many kernels were launched, how
often the host waited and how many copies were made; the program itself can ask with
tools.pretended_gpu.counts().

It says what the host does: which code runs, how many launches, waits and copies, whether a CUDA
graph can be captured. It does not say how long kernels take, whether they are right, or what is
wrong with streams and memory: all that a call asks for has happened when it returns. Without
--values a tensor of the GPU holds whatever its memory held. With it every operation of torch is
computed on the CPU, and none is counted; a Triton kernel then runs in Triton's interpreter alone
(TRITON_INTERPRET=1), and what inductor compiles has no values. cuDNN is turned off; cuFFT,
cuSOLVER, cuSPARSE and NCCL are not replaced and fail.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

from cdra_mm.command_line import run

from .building import library
from .inside import counts, environment, is_inside, prepared


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m tools.pretended_gpu',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--values', action='store_true', help='compute what torch is asked for')
    parser.add_argument('-m', dest='module', action='store_true', help='PROGRAM names a module')
    parser.add_argument('program', metavar='PROGRAM')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='ARGUMENTS')
    return parser.parse_args()


def start() -> None:
    """Starts this process anew with the library in place of CUDA's."""
    parse_args()
    variables = environment(str(library()))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


def main() -> None:
    args = parse_args()
    sys.argv = [args.program, *args.arguments]
    with prepared(args.values):
        try:
            if args.module:
                runpy.run_module(args.program, run_name='__main__', alter_sys=True)
            else:
                sys.path.insert(0, str(Path(args.program).resolve().parent))
                runpy.run_path(args.program, run_name='__main__')
        finally:
            parts = (f'{number} {name}' for name, number in asdict(counts()).items() if number)
            print('pretended GPU:', ', '.join(parts) or 'nothing', file=sys.stderr)


if __name__ == '__main__':
    if is_inside():
        main()
    else:
        run(start)
