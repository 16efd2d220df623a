"""The whole config of a run replaces nothing but an earlier one of its kind."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from cdra_mm.mm.config_dump import choose_name

WRITTEN = "# my notes\nmodel = dict(a=1)\nzoo = 2\nwork_dir = '.'\n"


@pytest.fixture
def given(tmp_path):
    """A config file of a user, beside its base."""
    (tmp_path / 'mine.py').write_text(WRITTEN)
    return tmp_path / 'mine.py'


def dump(path, work_dir, *, keep_others=False):
    """What mmengine does at the start of a run: (the name chosen, the names that are there)."""
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    work_dir.mkdir(exist_ok=True)
    name = choose_name(cfg, keep_others=keep_others)
    cfg.dump(work_dir / cfg.filename.rpartition('/')[2])
    return name, sorted(entry.name for entry in work_dir.glob('*.py'))


def test_a_config_in_its_own_work_directory_stays(given, tmp_path):
    for _ in range(2):  # its dump is replaced
        assert dump(given, tmp_path) == ('mine_run.py', ['mine.py', 'mine_run.py'])
        assert given.read_text() == WRITTEN
    (tmp_path / 'mine_run.py').write_text(WRITTEN)
    assert dump(given, tmp_path)[0] == 'mine_run2.py'


def test_another_file_of_that_name_stays(given, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    for text in ("_base_ = 'mine.py'\n", 'x = (', "'''Notes.'''\nwork_dir = 1\n", 'a = 1\n'):
        (run / 'mine.py').write_text(text)
        assert dump(given, run)[0] == 'mine_run.py'
        assert (run / 'mine.py').read_text() == text


def test_a_dump_takes_the_place_of_an_earlier_one(given, tmp_path):
    for _ in range(2):
        assert dump(given, tmp_path / 'run') == (None, ['mine.py'])
    # A run of the dump itself with nothing changed, as a resume.
    left = tmp_path / 'run/mine.py'
    text = left.read_text()
    assert dump(left, tmp_path / 'run') == (None, ['mine.py']) and left.read_text() == text


def test_the_dump_of_a_training_stays_as_it_was(given, tmp_path):
    run = tmp_path / 'run'
    dump(given, run)
    text = (run / 'mine.py').read_text()
    given.write_text(WRITTEN + 'load_from = 1\n')
    assert dump(given, run, keep_others=True)[0] == 'mine_test.py'
    assert (run / 'mine.py').read_text() == text


def test_a_config_without_a_file_is_left_alone(tmp_path):
    assert choose_name(Config(dict(work_dir=str(tmp_path))), keep_others=False) is None
