"""The example of many tasks runs to its end, small."""

from __future__ import annotations

from runpy import run_path

import pytest

pytest.importorskip('timm')


@pytest.fixture(scope='module')
def example(repository):
    return run_path(str(repository / 'examples/many_tasks.py'))


def test_three_tasks_are_trained_stored_and_served_by_one_base(example, tmp_path, capsys):
    example['main'](['--synthetic', '--iterations', '8', '--out', str(tmp_path / 'out')])
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'caltech101.safetensors',
        'camvid.safetensors',
        'dense.safetensors',
    ]
    assert 'a batch of 6 from 3 tasks' in printed and 'base: ' in printed


def test_missing_data_is_said_before_any_work(example, capsys):
    with pytest.raises(SystemExit):
        example['main'](['--weights', 'x'])
    assert '--camvid is needed, or --synthetic' in capsys.readouterr().err
