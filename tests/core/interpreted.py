"""Kernels of Triton are tested natively where there is a GPU.

Elsewhere the file of their tests runs itself once more in Triton's interpreter, which has to be
switched on before Triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
NATIVE = not INTERPRETED and torch.cuda.is_available()
DEVICE = 'cuda' if NATIVE else 'cpu'
runs = pytest.mark.skipif(
    not (INTERPRETED or NATIVE), reason='no GPU: run once more in the interpreter'
)
once_more = pytest.mark.skipif(INTERPRETED, reason='this is the interpreter')


def run_interpreted(file: str) -> None:
    """Runs a file of tests in the interpreter; fails with what it printed."""
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', file],
        cwd=Path(__file__).parents[2],
        env={**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert 'passed' in result.stdout


def multiply_bfloat16_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies bfloat16 by its bits: it is given the same values in fp32."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(value):
        if value.dtype.scalar != tl.bfloat16:
            return value
        data = (value.data.astype('uint32') << 16).view('float32')
        return interpreter.TensorHandle(data, tl.float32)

    def create_dot(self, a, b, *rest):
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', create_dot)
