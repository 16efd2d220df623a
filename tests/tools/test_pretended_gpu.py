"""The pretended GPU, and what it says of a training step on a GPU: values, launches, waits, graphs.

Each run is a process of its own (tests/tools/pretended_runs.py), since torch is loaded anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.pretended_gpu import building, counts
from tools.pretended_gpu.inside import is_inside

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'tools.pretended_gpu', *words],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope='module')
def library() -> Path:
    try:
        return building.library()
    except building.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def found(library, tmp_path_factory):
    """Gives what a run of pretended_runs.py finds; a second time without running it again."""
    known: dict[str, Any] = {}

    def find(name: str, *options: str, **variables: str) -> Any:
        if name not in known:
            out = tmp_path_factory.mktemp(name) / 'found.json'
            words = *options, '-m', 'tests.tools.pretended_runs', name, str(out)
            ended = call(*words, **variables)
            assert ended.returncode == 0, ended.stderr[-4000:]
            known[name] = json.loads(out.read_text())
        return known[name]

    return find


def openmmlab(found) -> Any:
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    return found('openmmlab', '--values', TRITON_INTERPRET='1')


def test_values_are_those_of_the_cpu(found):
    """The same operations in the same order: most often to the last bit."""
    values = found('values', '--values')
    assert values['fp32'] < 1e-5
    assert values['autocast'] < 1e-3
    assert values['inference'] == [5, 14, 14, 50]
    assert values['shown'] == "tensor([1., 1., 1.], device='cuda:0')"


def test_devices_are_not_mixed(found):
    refused = ['a sum', 'indices on the GPU', 'values on the CPU', 'a generator']
    assert found('values', '--values')['refused'] == refused


def test_launches_are_counted_outside_of_the_values_mode(found):
    values = found('values', '--values')
    assert values['launches'] == [0, 1]
    assert values['afterwards'] == [2, 2, 2]


def test_run_on_a_gpu_is_the_one_on_a_cpu(found):
    """Up to rounding: the kernels add in another order, and a CPU where tensors lie elsewhere."""
    runs = openmmlab(found)
    assert runs['moved'] > 0.01
    assert runs['kernels ran']
    assert runs['without kernels'] < 1e-5 * runs['moved']
    assert runs['with kernels'] < 1e-5 * runs['moved']


def test_scalars_of_the_adapters_wait_twice_at_most(found):
    runs = openmmlab(found)
    assert 0 < runs['logged']['waits'] - runs['not logged']['waits'] <= 2


def test_optimizer_launches_do_not_grow_with_its_parameters(found):
    """Of a paramwise_cfg, for which mmengine makes a group of each parameter."""
    runs = openmmlab(found)
    larger, smaller = runs['not logged'], runs['smaller']
    assert larger['parameters'] > smaller['parameters'] + 5
    assert 0 < larger['optimizing'] == smaller['optimizing']


def graphs(found) -> Any:
    """With the product in C++, whose compiler is waited for."""
    return found('graphs', CDRA_NATIVE='1')


def test_products_in_cpp_launch_what_those_in_python_do(found):
    steps = graphs(found)
    assert steps['taken']
    assert steps['eager'][-1] == steps['in Python'][-1]


def test_step_is_captured_as_a_cuda_graph(found):
    steps = graphs(found)
    eager = steps['eager'][-1]
    assert eager['launches'] > 50 and eager['gemms'] > 10
    assert eager['waits'] == eager['to_device'] == 0  # else it could not be captured
    for replayed in steps['whole step']:
        assert {key for key, number in replayed.items() if number} == {'graph_launches'}
        assert replayed['graph_launches'] == 1


def test_compiled_step_replays_graphs(found):
    """One of the forward, one of the backward; the optimizer and the loss are launched apart."""
    steps = graphs(found)
    for replayed in steps['compiled'][-2:]:
        assert replayed['graph_launches'] == 2
        assert replayed['launches'] < 20
        assert replayed['waits'] == 0


def test_program_is_run_as_python_runs_it(library, tmp_path):
    script = tmp_path / 'script.py'
    (tmp_path / 'beside.py').write_text('VALUE = 7\n')
    script.write_text(
        'import sys, beside, torch\n'
        'print(__name__, sys.argv[1:], beside.VALUE, torch.ones(2).cuda().device)\n'
        'sys.exit(3)\n'
    )
    ended = call(str(script), '--values', '-m')
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout == "__main__ ['--values', '-m'] 7 cuda:0\n"
    assert ended.stderr == 'pretended GPU: 1 to_device, 1 waits\n'


@pytest.mark.parametrize(
    ('what', 'value', 'message'),
    [
        ('platform.machine', lambda: 'arm64', 'needs Linux on x86-64, this is'),
        ('shutil.which', lambda name: None, r'needs a C compiler \(cc or gcc\)'),
        ('building.find_spec', lambda name: None, 'needs torch, which is not installed'),
    ],
)
def test_what_is_missing_is_said(what, value, message, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    if 'platform' not in what:
        monkeypatch.setattr(building.platform, 'system', lambda: 'Linux')
        monkeypatch.setattr(building.platform, 'machine', lambda: 'x86_64')
    owner, _, name = what.rpartition('.')
    monkeypatch.setattr(getattr(building, owner, building), name, value)
    if what == 'shutil.which':
        monkeypatch.setattr(building, '_torch_version', lambda: '2.0')
        monkeypatch.setattr(building, '_headers', lambda: tmp_path)
    with pytest.raises(building.BuildError, match=message):
        building.library()
    assert list(tmp_path.iterdir()) == []


def test_torch_of_another_cuda_is_refused_in_one_line(tmp_path):
    """By the command, which does not load that torch."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text('raise SystemError')
    (tmp_path / 'torch' / 'version.py').write_text(
        "__version__ = '2.6.0+cpu'\ncuda: Optional[str] = None\n"
    )
    ended = call('script.py', PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.startswith('error: the pretended GPU needs')
    if sys.platform == 'linux':
        assert 'torch 2.6.0+cpu is built for no CUDA' in ended.stderr
    assert ended.stderr.count('\n') == 1


def test_counts_belong_to_the_pretended_gpu():
    assert not is_inside()
    with pytest.raises(RuntimeError, match='start with python -m tools.pretended_gpu'):
        counts()


def test_steps_are_timed_and_counted(library):
    pytest.importorskip('peft')
    program = '-m', 'tools.pretended_gpu.steps', '--model', 'ViT-Ti', '--batch', '1'
    done = call('--values', *program, '--rounds', '2', '--only', 'ours spt')
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [
        line.split() for line in done.stdout.splitlines() if line.startswith(('frozen', 'ours'))
    ]
    (frozen, ours) = ([int(word) for word in row[-3:]] for row in rows)
    assert 400 < frozen[0] < ours[0] < 1.5 * frozen[0], rows  # 556 and 648
    assert frozen[1:] == ours[1:] == [0, 0]
