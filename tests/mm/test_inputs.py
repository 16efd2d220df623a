"""Weight files are looked for before a run, and refused in the words of whoever opens files."""

from __future__ import annotations

import os

import pytest

pytest.importorskip('mmengine')

from cdra_mm.errors import CheckpointError
from cdra_mm.mm.inputs import check_weight_file
from cdra_mm.storage import open_regular


def refusal(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize('name', ['none.pth', 'folder.safetensors', 'pipe.npz', 'loop.pth'])
def test_weights_of_a_run_are_refused_in_the_same_words(tmp_path, name):
    (tmp_path / 'folder.safetensors').mkdir()
    os.mkfifo(tmp_path / 'pipe.npz')
    (tmp_path / 'loop.pth').symlink_to(tmp_path / 'loop.pth')
    path = tmp_path / name
    given = refusal(lambda: check_weight_file(str(path), 'load_from'))
    assert given == refusal(lambda: open_regular(path, 'weight file', 'load_from'))
    assert given.startswith(f'weight file {path} (load_from) ') and '\n' not in given
