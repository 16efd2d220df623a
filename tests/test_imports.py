"""Imports go down only: a file imports what lies below its room, and its own room.

Tools -> commands -> analysis -> tables -> mm -> benchmark, pictures, peft -> methods -> core ->
reading, data -> storage -> errors. The rooms of core have floors of their own.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

# The longest name that fits a file counts. Rooms of one floor do not know each other.
FLOORS = {
    'version': 0,
    'errors': 0,
    'progress': 0,
    'spelling': 0,
    'columns': 0,
    'last_checkpoint': 0,
    'heavy_imports': 0,
    'unread_output': 0,
    'command_line': 1,
    'settings': 1,
    'storage': 1,
    'data': 2,
    'reading': 2,
    'core.packed': 2,
    'core.flat_layout': 2,
    'core.once_differentiable': 2,
    'core.triton_support': 2,
    'core.native': 2,
    'core.model': 3,
    'core.scoring': 4,
    'core.planning': 4,
    'core.adapters': 5,
    'core.artifacts': 6,
    'core': 7,
    'methods': 8,
    'sizing': 8,
    'onnx_files': 8,
    'benchmark': 9,
    'pictures': 9,
    'peft': 9,
    'mm': 10,
    'tables': 11,
    'analysis': 12,
    'commands': 13,
    '__main__': 14,
    '': 13,  # what the package itself offers, loaded when it is asked for
    'tools': 15,
}
OPENMMLAB = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet')
CORE_MAY = {'torch', 'safetensors', 'cdra_mm'}
# What prepares data and what core stands on starts without it.
WITHOUT_TORCH = [
    'errors',
    'settings',
    'progress',
    'last_checkpoint',
    'command_line',
    'storage',
    'data',
    'commands',
    'commands.data_prepare',
]
# Loaded only where there is a GPU; torch brings Triton along there.
CORE_ALSO = dict.fromkeys(
    ('square_kernel.py', 'block_kernels.py', 'gradient_kernels.py', 'kernel_launches.py'),
    {'triton'},
)


def fresh(code, repository):
    """Output of a new interpreter that runs ``code`` in the repository's folder."""
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def first_to_load(modules, wanted, repository):
    """The first of some modules, imported one after another in a fresh process, to load a package.

    What a module loads stays loaded: where the last one finds none of the packages, none loads any.
    """
    code = (
        'import sys\n'
        'from importlib import import_module\n'
        f'for name in {list(modules)!r}:\n'
        '    import_module(name)\n'
        f'    if found := {set(wanted)!r} & {{m.split(".")[0] for m in sys.modules}}:\n'
        '        sys.exit(print(name, found))\n'
    )
    return fresh(code, repository)


def test_import_loads_nothing_of_openmmlab(repository):
    modules = ['cdra_mm', 'cdra_mm.core', 'cdra_mm.methods', 'cdra_mm.benchmark.command']
    assert first_to_load(modules, OPENMMLAB, repository) == ''


def test_import_loads_no_torch(repository):
    modules = [f'cdra_mm.{name}' for name in WITHOUT_TORCH]
    assert first_to_load(modules, {'torch'}, repository) == ''


def test_core_and_methods_do_not_load_the_compiler(repository):
    """Which takes a second or two; torch loads it where it is used."""
    code = (
        'import sys, torch, cdra_mm.core, cdra_mm.methods\n'
        'assert "torch._dynamo" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], cwd=repository, check=True)


def test_import_check_would_notice(repository):
    assert first_to_load(['ast', 'json', 'csv'], {'json'}, repository) == "json {'json'}\n"


def package(path, repository):
    """The dotted package that a file's relative imports start from."""
    return '.'.join(path.relative_to(repository).with_suffix('').parts[:-1])


def imported(path, repository):
    """Absolute names of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = package(path, repository).split('.')
                parts = parts[: len(parts) - node.level + 1]
                base = '.'.join([*parts, base] if base else parts)
            yield base
            yield from (f'{base}.{alias.name}' for alias in node.names)


def room_of(name):
    """The room in ``FLOORS`` of a dotted name of ours; None for the names of others."""
    top, *parts = name.split('.')
    if top != 'cdra_mm':
        return 'tools' if top == 'tools' else None
    rooms = ('.'.join(parts[:length]) for length in range(len(parts), -1, -1))
    return next(room for room in rooms if room in FLOORS)


def files(repository):
    found = sorted((repository / 'cdra_mm').rglob('*.py'))
    return found + sorted((repository / 'tools').rglob('*.py'))


def module_of(path, repository):
    """The dotted name of a file."""
    parts = path.relative_to(repository).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def may_import(module, name):
    """Whether a module of ours may import a dotted name, by the floors of both."""
    own, other = room_of(module), room_of(name)
    return other is None or other == own or FLOORS[other] < FLOORS[own]


def test_floors_would_notice():
    assert may_import('cdra_mm.core.scoring.scores', 'cdra_mm.core.model.targets')
    assert not may_import('cdra_mm.core.scoring.scores', 'cdra_mm.core.planning.plan')
    assert not may_import('cdra_mm.core.model.targets', 'cdra_mm.core')
    assert not may_import('cdra_mm.mm.hook', 'cdra_mm')


def test_imports_go_down_only(repository):
    scanned = set()
    for path in files(repository):
        module = module_of(path, repository)
        scanned.add(room_of(module))
        for name in imported(path, repository):
            assert may_import(module, name), f'{module} imports {name}'
            if FLOORS[room_of(module)] <= FLOORS['benchmark']:
                assert name.split('.')[0] not in OPENMMLAB, f'{module} imports {name}'
    assert scanned == set(FLOORS)


def test_benchmark_compares_the_core_alone(repository):
    found = sorted((repository / 'cdra_mm' / 'benchmark').rglob('*.py'))
    assert len(found) > 10
    for path in found:
        for name in imported(path, repository):
            floor = FLOORS.get(room_of(name), 0)
            near = room_of(name) in ('benchmark', 'sizing')
            assert floor <= FLOORS['core'] or near, f'{path.name}: {name}'


def test_core_needs_torch_and_the_standard_library_only(repository):
    for path in sorted((repository / 'cdra_mm' / 'core').rglob('*.py')):
        for name in imported(path, repository):
            top = name.split('.')[0]
            may = CORE_MAY | CORE_ALSO.get(path.name, set())
            assert top in may or top in sys.stdlib_module_names, f'{path.name}: {name}'


def test_core_scores_on_a_cpu_without_triton(repository):
    """``None`` in ``sys.modules`` makes every import of it fail."""
    code = (
        'import sys; sys.modules["triton"] = None\n'
        'import torch; from cdra_mm.core import estimate_scores\n'
        'from cdra_mm.core.scoring import squares\n'
        'layer, total = torch.nn.Linear(3, 2), torch.zeros(2, 3)\n'
        'squares.add_squares(total, torch.ones(1, 4, 3), torch.ones(1, 4, 2))\n'
        'loss = lambda model, x: model(x).sum(1)\n'
        'scores = estimate_scores(layer, [torch.ones(1, 3)], loss, targets=["weight"])\n'
        'print(float(total[0, 0]), *scores)'
    )
    assert fresh(code, repository).split() == ['16.0', 'weight']


def ours(path, repository):
    """Files of core that a file of core imports."""
    core = repository / 'cdra_mm' / 'core'
    known = {module_of(each, repository) for each in core.rglob('*.py')}
    return set(imported(path, repository)) & known


def test_plan_record_imports_nothing_of_core(repository):
    """But its own parts."""
    folder, own = repository / 'cdra_mm' / 'core' / 'planning', ('records', 'plan_checks')
    parts = {f'cdra_mm.core.planning.{name}' for name in own}
    for name in (*own, 'plan'):
        assert ours(folder / f'{name}.py', repository) <= parts


@pytest.mark.parametrize('name', ['selection', 'compaction', 'ranks'])
def test_core_steps_see_tensors_only(name, repository):
    seen = ours(repository / 'cdra_mm' / 'core' / 'planning' / f'{name}.py', repository)
    assert seen <= {'cdra_mm.core.planning', 'cdra_mm.core.planning.threads'}


def test_no_file_of_core_is_in_a_circle(repository):
    core = repository / 'cdra_mm' / 'core'
    uses = {
        module_of(path, repository): ours(path, repository)
        for path in core.rglob('*.py')
        if path.name != '__init__.py'
    }
    while uses:
        free = {name for name, others in uses.items() if not others & set(uses)}
        assert free, f'these import each other: {sorted(uses)}'
        uses = {name: others for name, others in uses.items() if name not in free}
