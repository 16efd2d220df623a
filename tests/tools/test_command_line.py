"""How a tool ends."""

from __future__ import annotations

import pytest

from cdra_mm.command_line import one_line, run
from cdra_mm.core import ConfigError, DataError


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (ConfigError('a\n  b'), 2, 'error: a b'),
        (FileNotFoundError(2, 'Gone', 'x.png'), 2, "error: [Errno 2] Gone: 'x.png'"),
        (ModuleNotFoundError('no mmcv', name='mmcv'), 2, 'error: no mmcv'),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_line(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == line + '\n'


@pytest.mark.parametrize('error', [ValueError('bug'), ModuleNotFoundError('x', name='x')])
def test_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_message_of_a_worker_is_its_last_line():
    text = 'Caught DataError in worker 0.\nOriginal Traceback (most recent call last):\n  x\n'
    assert one_line(DataError(text + 'cdra_mm.errors.DataError: a.png: gone')) == 'a.png: gone'
