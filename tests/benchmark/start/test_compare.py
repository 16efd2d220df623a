"""Rounds of the ways to start a run become one record and one table."""

from __future__ import annotations

import pytest

from cdra_mm.benchmark.arguments import STARTS, parser
from cdra_mm.benchmark.command import JOBS, main
from cdra_mm.benchmark.start import compare, inputs
from cdra_mm.benchmark.start.compare import WAYS, compare_starts, summed
from cdra_mm.benchmark.start.table import render_starts
from cdra_mm.errors import ConfigError


def spent(seconds: float) -> dict[str, float]:
    return {'seconds': seconds, 'cpu_seconds': seconds / 2, 'entered': 1}


def report(steps: float, **stages: float) -> dict:
    return {
        'stages': {name: spent(seconds) for name, seconds in stages.items()},
        'steps': spent(steps),
        'peak_bytes': 7,
    }


@pytest.fixture
def rounds(monkeypatch, tmp_path):
    """What three rounds find, the first of which is a warm-up."""
    found = {
        'OpenMMLab': [report(9, imports=99), report(10, imports=20), report(20, imports=24)],
        'ours, no hook': [report(9, imports=99), report(10, imports=19), report(20, imports=25)],
        'ours, CDRA': [
            report(9, imports=99, scoring=1),
            report(4, imports=18, scoring=11, rebuild=3),
            report(4, imports=22, scoring=24, rebuild=3),
        ],
    }
    case = inputs.StartCase('camvid', tmp_path, (), {}, 8, 2, 'smaller')
    monkeypatch.setattr(compare, 'make_case', lambda *_: case)
    monkeypatch.setattr(compare, 'openmmlab_script', lambda: tmp_path)
    monkeypatch.setattr(compare, 'run_once', lambda _, way, *__: found[way].pop(0))
    return found


def test_record_pairs_the_rounds(rounds):
    record = compare_starts('camvid', repeats=2, warmup=1, seed=0)
    assert list(record['candidates']) == list(WAYS) and not any(rounds.values())
    stock, _, ours = record['candidates'].values()
    assert stock['seconds'] == 22 and stock['added_seconds'] == 0
    # 21 - 20 and 25 - 24: scoring is apart.
    assert ours['added_seconds'] == 1 and ours['added_cpu_seconds'] == 0.5
    assert ours['stages']['rebuild']['seconds'] == 3
    assert ours['scoring_seconds_ratio_vs_steps'] == pytest.approx(1.15)  # of 1.1 and 1.2
    text = render_starts(record)
    assert 'added, without scoring and' in text and '1.00 / 0.50' in text
    assert "ours, CDRA: scoring takes 1.150 of OpenMMLab's steps" in text


def test_sum_leaves_a_stage_out():
    assert summed(report(1, a=2, b=3), 'b') == {'seconds': 2, 'cpu_seconds': 1}
    assert summed(report(1, a=2, b=3, c=4), 'b', 'c') == {'seconds': 2, 'cpu_seconds': 1}


def test_names_of_the_command_line_are_those_of_the_code():
    assert tuple(inputs.CASES) == STARTS
    assert parser().parse_args(['start']).runs == list(STARTS)


def test_start_without_openmmlab_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(compare.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(ConfigError, match='mmsegmentation with its tools/train.py is not install'):
        list(JOBS['start']({'repeats': 1, 'warmup': 0, 'seed': 0, 'runs': ['camvid']}, []))


def test_data_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('CDRA_CAMVID_ROOT', str(tmp_path / 'gone'))
    monkeypatch.setattr('cdra_mm.benchmark.start.compare.openmmlab_script', lambda: tmp_path)
    words = 'start --runs camvid --repeats 1 --warmup 0 --device cpu'.split()
    with pytest.raises(ConfigError, match='gone: name it in CDRA_CAMVID_ROOT'):
        main(parser().parse_args(words))


def test_run_that_fails_is_named(tmp_path):
    case = inputs.StartCase('camvid', tmp_path / 'gone.py', (), {}, 2, 1, '')
    script = tmp_path / 'script.py'
    script.write_text('raise SystemExit("no such config")')
    with pytest.raises(ConfigError, match='camvid, OpenMMLab: the run fails: no such config'):
        compare.run_once(case, 'OpenMMLab', script, tmp_path)
