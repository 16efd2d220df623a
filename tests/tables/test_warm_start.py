"""A run that was forked is like one that was started: what can be seen of it from both sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from cdra_mm.tables import warm_start
from cdra_mm.tables.processes import end, start_cold
from cdra_mm.tables.warm_start import WarmStart

from .project import alive, stat, wait_for

# What a script finds when it runs; the file that it is told to write says it.
SCRIPT = """
import json, os, random, sys
print('printed')
print('to stderr', file=sys.stderr)
found = dict(
    name=__name__,
    main=sys.modules['__main__'].__file__,
    arguments=sys.argv,
    path=sys.path,
    folder=os.getcwd(),
    environment=dict(os.environ),
    stdin=sys.stdin.read(),
    leads=os.getpgid(0) == os.getsid(0) == os.getpid(),
    files=sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')
                 if os.path.exists(f'/proc/self/fd/{n}')),
    pipe=os.write(int(os.environ['PIPE']), b'!'),
    unbuffered=sys.stdout.write_through,
    ours='cdra_mm' in sys.modules,
)
with open(sys.argv[1], 'w') as file:
    json.dump(found, file)
exec(sys.argv[2])
"""
CODES = {
    'pass': 0,
    'sys.exit(3)': 3,
    'sys.exit("why not")': 1,
    'raise ValueError("seven")': 1,
    'os._exit(5)': 5,
    'os.kill(os.getpid(), 15)': -15,
}


@pytest.fixture
def starts(monkeypatch):
    monkeypatch.setattr(warm_start, 'IMPORTS', '')
    told = []
    with WarmStart(sys.executable, told.append) as start:
        yield {'warm': start, 'cold': start_cold}
    assert not told


def script(tmp_path, text=SCRIPT):
    (tmp_path / 'folder').mkdir(exist_ok=True)
    path = tmp_path / 'folder/script.py'
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(('last', 'code'), CODES.items())
def test_warm_run_finds_what_a_cold_one_finds(starts, tmp_path, last, code):
    found, logs = {}, {}
    for name, start in starts.items():
        reading, writing = os.pipe()
        out, log = tmp_path / 'found.json', tmp_path / 'log'
        log.write_text('before\n')
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'PIPE': str(writing), 'ODD': '\udcff'}
        words = [sys.executable, script(tmp_path), str(out), last]
        # The server inherits what its first run does.
        server = start if name == 'cold' else WarmStart(sys.executable, pytest.fail)
        assert server(words, log, environment, [writing]).wait(60) == code
        if name == 'warm':
            server.__exit__()
        os.close(writing)
        assert os.read(reading, 9) == b'!'
        os.close(reading)
        found[name], logs[name] = json.loads(out.read_text()), log.read_text()
        found[name]['environment'].pop('PIPE')
        found[name]['files'] = [f for f in found[name]['files'] if not f.startswith('pipe:')]
    assert found['warm'].pop('ours') != found['cold'].pop('ours')
    assert found['warm'] == found['cold']
    for log in logs.values():
        assert log.startswith('before\nprinted\nto stderr\n')
    told = [log.splitlines()[-1] for log in logs.values()]
    assert told[0] == told[1]
    assert ('Traceback' in logs['warm']) == ('Traceback' in logs['cold'])


def test_warm_runs_are_forked_from_one_process_and_draw_different_numbers(starts, tmp_path):
    text = 'import os, random, sys\nprint(os.getppid(), random.random())\n'
    log = tmp_path / 'log'
    words = [sys.executable, script(tmp_path, text)]
    runs = [starts['warm'](words, log, dict(os.environ), []) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    parents, numbers = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert len(set(parents)) == 1 and len(set(numbers)) == 3
    assert parents[0] != str(os.getpid())


def test_warm_runs_of_other_threads_have_another_process_and_of_other_gpus_have_not(
    starts, tmp_path
):
    text = 'import os\nprint(os.getppid(), os.environ.get("CUDA_VISIBLE_DEVICES"))\n'
    log = tmp_path / 'log'
    words = [sys.executable, script(tmp_path, text)]
    base = {key: value for key, value in os.environ.items() if key != 'CUDA_VISIBLE_DEVICES'}
    for more in (
        {'CUDA_VISIBLE_DEVICES': '0'},
        {'CUDA_VISIBLE_DEVICES': '3'},
        {'CUDA_VISIBLE_DEVICES': '3', 'OMP_NUM_THREADS': '7'},
        {'CUDA_VISIBLE_DEVICES': ''},
        {},
    ):
        assert starts['warm'](words, log, {**base, **more}, []).wait(60) == 0
    lines = [line.split(' ') for line in log.read_text().splitlines()]
    first, second, *others = (line[0] for line in lines)
    assert first == second and len({first, *others}) == 4
    assert [line[1] for line in lines] == ['0', '3', '3', '', 'None']


def test_warm_runs_that_are_left_are_ended_with_what_they_started(monkeypatch, tmp_path):
    monkeypatch.setattr(warm_start, 'IMPORTS', '')
    text = (
        'import os, subprocess, sys, time\n'
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])\n'
        'print(os.getppid(), os.getpid(), child.pid, flush=True)\n'
        'time.sleep(300)\n'
    )
    log = tmp_path / 'log'
    with WarmStart(sys.executable, pytest.fail) as start:
        run = start([sys.executable, script(tmp_path, text)], log, dict(os.environ), [])
        wait_for(lambda: log.read_text().endswith('\n'))
        assert run.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.05)
    pids = [int(word) for word in log.read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))
    assert run.poll() == -signal.SIGTERM


def test_warm_run_is_ended_by_its_group_as_soon_as_it_is_known(starts, tmp_path):
    """Its group exists when it is handed over: nothing that is to end it finds none."""
    log = tmp_path / 'log'
    for _ in range(20):
        run = starts['warm']([sys.executable, script(tmp_path, 'import time; time.sleep(300)')],
                             log, dict(os.environ), [])  # fmt: skip
        assert int(stat(run.pid)[2]) == int(stat(run.pid)[3]) == run.pid
        end([run])
        assert run.poll() == -signal.SIGTERM


def test_warm_start_goes_on_when_its_process_is_killed(starts, tmp_path):
    log, environment = tmp_path / 'log', dict(os.environ)
    words = [sys.executable, script(tmp_path, 'import time; time.sleep(300)')]
    run = starts['warm'](words, log, environment, [])
    server = int(stat(run.pid)[1])
    os.kill(server, signal.SIGKILL)
    # How it would have ended cannot be known any more.
    assert run.wait(60) == -signal.SIGKILL
    wait_for(lambda: not alive(run.pid))
    words = [sys.executable, script(tmp_path, 'print("again")')]
    assert starts['warm'](words, log, environment, []).wait(60) == 0
    assert log.read_text() == 'again\n'


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('1 / 0', 'the process that imports for all ended (exit code 1): ZeroDivisionError'),
        (
            'import threading, time\n'
            'def import_all():\n'
            '    threading.Thread(target=time.sleep, args=(300,), daemon=True).start()\n',
            'the imports started 1 threads',
        ),
        (
            'import sys, types\n'
            'yes = lambda: True\n'
            'cuda = types.SimpleNamespace(is_available=yes, _is_in_bad_fork=yes)\n'
            'def import_all():\n'
            '    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)\n',
            'CUDA was started by the imports',
        ),
    ],
)
def test_imports_that_cannot_be_forked_are_told_once_and_runs_start_cold(
    monkeypatch, tmp_path, content, reason
):
    (tmp_path / 'imports_of_a_test.py').write_text(content)
    monkeypatch.setattr(warm_start, 'IMPORTS', 'imports_of_a_test')
    told, log = [], tmp_path / 'log'
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
    words = [sys.executable, script(tmp_path, 'import os; print(os.getppid())')]
    with WarmStart(sys.executable, told.append) as start:
        assert [start(words, log, environment, []).wait(60) for _ in range(2)] == [0, 0]
    assert log.read_text().split() == [str(os.getpid())] * 2
    (line,) = told
    assert 'each with its own imports' in line and reason in line


def test_warm_start_says_as_a_cold_one_that_a_log_cannot_be_written(starts, tmp_path):
    for start in starts.values():
        with pytest.raises(OSError, match='No such file'):
            start([sys.executable, script(tmp_path)], tmp_path / 'no/log', dict(os.environ), [])


def test_warm_runs_draw_different_numbers_of_numpy_and_find_no_other_thread(monkeypatch, tmp_path):
    (tmp_path / 'imports_of_a_test.py').write_text('import numpy.random\ndef import_all(): pass\n')
    monkeypatch.setattr(warm_start, 'IMPORTS', 'imports_of_a_test')
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}
    for key in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
        environment.pop(key, None)
    text = (
        'import os, sys\n'
        'print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"), end=" ")\n'
        'print(sys.modules["numpy"].random.rand())\n'
    )
    log = tmp_path / 'log'
    with WarmStart(sys.executable, pytest.fail) as start:
        for _ in range(2):
            words = [sys.executable, script(tmp_path, text)]
            assert start(words, log, environment, []).wait(60) == 0
    first, second = (line.split() for line in log.read_text().splitlines())
    assert first[:2] == second[:2] == ['True', 'None']
    assert first[2] != second[2]
