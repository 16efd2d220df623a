"""What cannot be opened is refused in one line that names it, and what names it."""

from __future__ import annotations

import pytest

from cdra_mm.errors import CheckpointError
from cdra_mm.storage import open_regular


def refusal(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


def test_refusals_name_the_file_and_its_setting(tmp_path):
    path = tmp_path / 'a.pth'
    assert refusal(lambda: open_regular(path, 'weight file', 'load_from')) == (
        f'weight file {path} (load_from) does not exist: put it there or name another'
    )
    assert refusal(lambda: open_regular(tmp_path)) == (
        f'file {tmp_path} is a folder: put a file there or name another'
    )
