"""`prepare_data.py --config CONFIG --check`: the command line of the check of any config's data."""

from __future__ import annotations

from pathlib import Path

import pytest

mmseg = pytest.importorskip('mmseg', reason='configs need OpenMMLab')


@pytest.fixture
def config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A config file of six training and three validation pairs."""
    from tests.mm.data_folders import sets

    path = tmp_path / 'mine.py'
    sets.segmentation(tmp_path / 'mine').dump(path)
    capsys.readouterr()  # what building the base weights has said
    return path


def test_good_data_of_a_config_are_counted(run, config: Path) -> None:
    code, output, errors = run('--config', config, '--check', '--workers', 0)
    assert (code, errors) == (0, [])
    lines = output.splitlines()
    assert lines[0] == f'data of {config}'
    assert lines[1].split()[:3] == ['train', '6', 'samples']
    assert lines[2].split()[:4] == ['val,', 'test', '3', 'samples']
    assert lines[-1] == 'good'


def test_wrong_data_of_a_config_end_with_the_first_file(run, config: Path) -> None:
    (config.parent / 'mine/images/train/1.jpg').write_text('no picture')
    code, output, errors = run('--config', config, '--check', '--workers', 0)
    assert code == 2
    assert '1 wrong:' in output
    assert len(errors) == 1
    assert 'images/train/1.jpg cannot be read: LoadImageFromFile fails' in errors[0]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--config', 'a.py'], '--config goes with --check'),
        (['demo', 'd', '--config', 'a.py', '--check'], 'without NAME and ROOT'),
        (['demo'], 'expected NAME and ROOT, or --config CONFIG --check'),
        (['demo', 'd', '--workers', '2'], '--cfg-options and --workers go with --config'),
        (['--config', 'a.py', '--check', '--workers', '-1'], 'expected a count'),
    ],
)
def test_words_that_do_not_go_together_are_refused(run, words, message) -> None:
    code, _, errors = run(*words)
    assert code == 2
    assert message in errors[-1]
