"""Runs side by side: slots, time limits, interruptions and the lock."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from cdra_mm.core import ConfigError
from cdra_mm.tables.slots import find_slots

from .project import GRID, alive, end, stat, wait_for

HANG = GRID.replace('budget_percent=0.5)', "budget_percent=0.5), options={'fake.do': 'hang'}")
ONE = ('--methods', 'cdra', '--tasks', 'cats', '--seeds', '0')
JOB = 'cdra/cats/final,seed0'


@pytest.fixture
def gpus(monkeypatch):
    """Four GPUs, two of them visible."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1,3')


def devices(slots) -> list[str]:
    return [slot.environment['CUDA_VISIBLE_DEVICES'] for slot in slots]


def test_slots_are_the_visible_gpus_in_turn(gpus):
    assert devices(find_slots(None, 1)) == ['1', '3']
    assert devices(find_slots(None, 2)) == ['1', '3', '1', '3']
    assert devices(find_slots(['3'], 1)) == ['3']
    assert devices(find_slots(['cpu'], 1)) == ['']


def test_slots_of_a_launcher_leave_the_devices_alone(gpus):
    assert [slot.environment for slot in find_slots(None, 2, launched=True)] == [{}, {}]


def test_slots_on_a_cpu_have_one_thread_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert [slot.environment['OMP_NUM_THREADS'] for slot in find_slots(None, 2)] == ['1', '1']
    (alone,) = find_slots(None, 1)
    assert 'OMP_NUM_THREADS' not in alone.environment


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((['7'], 1), {}, '--devices 7: PyTorch sees GPUs 1, 3 here'),
        ((None, 0), {}, '--jobs 0: expected at least 1'),
        ((['1'], 1), {'launched': True}, 'the launcher chooses'),
    ],
)
def test_slots_refuse_what_is_not_there(gpus, arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        find_slots(*arguments, **options)


BOTH = pytest.mark.parametrize('how', [(), ('--cold',)], ids=['warm', 'cold'])


def pids(project, job: str = JOB) -> list[int]:
    path = project.out / job / 'pids.txt'
    wait_for(lambda: path.is_file() and len(path.read_text().split()) == 2)
    return [int(word) for word in path.read_text().split()]


@BOTH
def test_runner_ends_a_run_that_takes_too_long_with_its_children(project, capsys, how):
    project.write_grid(HANG)
    with pytest.raises(ConfigError, match='1 of the runs failed'):
        project.run('--methods', 'cdra', 'full', *ONE[2:], '--timeout', '0.05', *how)
    assert 'took longer than 3 s and was ended' in capsys.readouterr().out
    wait_for(lambda: not any(map(alive, pids(project))))
    assert project.summary('full/cats/final,seed0')['method'] == 'full'


@pytest.mark.parametrize(
    ('number', 'how'),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGINT, ('--cold',))],
    ids=['warm', 'warm, SIGTERM', 'cold'],
)
def test_runner_interruption_ends_the_runs_and_can_be_continued(project, number, how):
    project.write_grid(HANG)
    process = project.start('--methods', 'cdra', '--tasks', 'cats', '--jobs', '2', *how)
    running = [*pids(project), *pids(project, 'cdra/cats/final,seed1')]
    group = {int(stat(pid)[1]) for pid in running[::2]}  # their parents
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, 'interrupted\n'), out
    assert len(set(running)) == 4 and len(group) == 1
    wait_for(lambda: not any(map(alive, [*running, *group])))
    # Nothing holds the folder; the same settings go on where they broke off.
    calls = project.calls(JOB)
    (project.folder / 'tools/train.py').write_text(
        (project.folder / 'tools/train.py').read_text().replace("do == 'hang'", 'False')
    )
    project.run('--methods', 'cdra', '--tasks', 'cats')
    assert project.calls(JOB) == [*calls, '--final --resume']


@BOTH
def test_runner_refuses_a_folder_where_another_is_at_work_even_when_that_was_killed(project, how):
    project.write_grid(HANG)
    process = project.start(*ONE, *how)
    short = (*ONE, '--timeout', '0.05')  # in case that it does not refuse
    left = pids(project)
    try:
        with pytest.raises(ConfigError, match='another tables.py, or a run that one left behind'):
            project.run(*short)
        process.kill()
        process.wait()
        assert all(map(alive, left))
        with pytest.raises(ConfigError, match='another tables.py, or a run that one left behind'):
            project.run(*short)
        os.kill(left[0], signal.SIGKILL)
        with pytest.raises(ConfigError, match='another tables.py, or a run that one left behind'):
            project.run(*short)
    finally:
        for pid in left:
            end(pid)
    project.run('--methods', 'full', *ONE[2:])
    assert project.summary('full/cats/final,seed0')['method'] == 'full'
    process.stdout.close()
    process.stderr.close()


@BOTH
def test_runner_names_a_run_that_was_killed(project, capsys, how):
    project.write_grid(GRID)
    (project.folder / 'tools/train.py').write_text(
        'import os, signal\nprint("half way")\nos.kill(os.getpid(), signal.SIGKILL)\n'
    )
    with pytest.raises(ConfigError, match='1 of the runs failed'):
        project.run(*ONE, *how)
    assert 'ended by SIGKILL: half way' in capsys.readouterr().out


def test_runner_survives_a_launcher_that_is_not_there(project, capsys):
    from cdra_mm.tables import study
    from cdra_mm.tables.study_options import parser

    words = ['toy', '--out', str(project.out), '--tasks', 'cats', '--launcher', 'no-such-program']
    with pytest.raises(ConfigError, match='6 of the runs failed'):
        study.main(parser().parse_args(words), project.folder / 'tools')
    assert "No such file or directory: 'no-such-program'" in capsys.readouterr().out
