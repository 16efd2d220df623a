"""Imports go down only; core needs torch alone.

Tools -> analysis -> tables -> mm -> benchmark, pictures -> methods -> core.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

FLOORS = {
    'core': 0,
    'methods': 1,
    'reading': 1,
    'benchmark': 2,
    'pictures': 2,
    'mm': 3,
    'tables': 4,
    'analysis': 5,
    'tools': 6,
}
OPENMMLAB = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet')
CORE_MAY = {'torch', 'safetensors', 'cdra_mm'}
# Loaded only where there is a GPU; torch brings Triton along there.
CORE_ALSO = {'square_kernel.py': {'triton'}}


def fresh(code, repository):
    """Output of a new interpreter that runs ``code`` in the repository's folder."""
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(statement, repository):
    """Top-level packages of OpenMMLab that a fresh process holds after a statement."""
    code = f'import sys\n{statement}\nprint(*{{m.split(".")[0] for m in sys.modules}})'
    return set(fresh(code, repository).split()) & set(OPENMMLAB)


@pytest.mark.parametrize(
    'module', ['cdra_mm', 'cdra_mm.core', 'cdra_mm.methods', 'cdra_mm.benchmark.command']
)
def test_import_loads_nothing_of_openmmlab(module, repository):
    assert loaded_after(f'import {module}', repository) == set()


def test_import_check_would_notice(repository):
    """The check above sees a package that a statement does load."""
    code = 'import types; sys.modules["mmengine"] = types.ModuleType("mmengine")'
    assert loaded_after(code, repository) == {'mmengine'}


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


def floor_of(name):
    """Floor of a dotted name of ours; None for others and for the package's own root."""
    parts = name.split('.')
    if parts[0] == 'tools':
        return FLOORS['tools']
    return FLOORS.get(parts[1]) if parts[0] == 'cdra_mm' and len(parts) > 1 else None


def files(repository):
    found = sorted((repository / 'cdra_mm').rglob('*.py'))
    return found + sorted((repository / 'tools').rglob('*.py'))


def test_imports_go_down_only(repository):
    scanned = 0
    for path in files(repository):
        module = '.'.join(path.relative_to(repository).with_suffix('').parts)
        own = floor_of(module)
        if own is None:
            continue
        scanned += 1
        for name in imported(path, repository):
            other = floor_of(name)
            assert other is None or other <= own, f'{module} imports {name}'
            if own <= FLOORS['benchmark']:
                assert name.split('.')[0] not in OPENMMLAB, f'{module} imports {name}'
                assert name != 'cdra_mm', f'{module} imports the package that sits above it'
    assert scanned >= 12


def test_benchmark_compares_the_core_alone(repository):
    found = sorted((repository / 'cdra_mm' / 'benchmark').rglob('*.py'))
    assert len(found) > 10
    for path in found:
        for name in imported(path, repository):
            mine = name.split('.')[1:2] if name.startswith('cdra_mm') else []
            assert mine in ([], ['core'], ['reading'], ['benchmark']), f'{path.name}: {name}'


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
        'import torch; from cdra_mm.core import estimate_scores, squares\n'
        'layer, total = torch.nn.Linear(3, 2), torch.zeros(2, 3)\n'
        'squares.add_squares(total, torch.ones(1, 4, 3), torch.ones(1, 4, 2))\n'
        'loss = lambda model, x: model(x).sum(1)\n'
        'scores = estimate_scores(layer, [torch.ones(1, 3)], loss, targets=["weight"])\n'
        'print(float(total[0, 0]), *scores)'
    )
    assert fresh(code, repository).split() == ['16.0', 'weight']


def ours(path, repository):
    """Modules of core that a file of core imports, without the errors."""
    prefix = 'cdra_mm.core.'
    names = {n[len(prefix) :].split('.')[0] for n in imported(path, repository) if prefix in n}
    return {n for n in names if (path.parent / f'{n}.py').exists()} - {'errors'}


def test_core_plan_record_imports_nothing_of_ours_but_a_reader_of_text(repository):
    core = repository / 'cdra_mm' / 'core'
    assert ours(core / 'plan.py', repository) == {'strict_json'}
    assert ours(core / 'strict_json.py', repository) == set()


@pytest.mark.parametrize('name', ['selection', 'compaction', 'ranks'])
def test_core_steps_see_tensors_only(name, repository):
    core = repository / 'cdra_mm' / 'core'
    seen = ours(core / f'{name}.py', repository)
    assert not seen & {'targets', 'layers', 'adapt', 'files', 'plan', 'planning'}


def test_core_has_no_circle(repository):
    core = repository / 'cdra_mm' / 'core'
    uses = {path.stem: ours(path, repository) for path in core.glob('*.py')}
    uses.pop('__init__')
    while uses:
        free = {name for name, others in uses.items() if not others & set(uses)}
        assert free, f'these import each other: {sorted(uses)}'
        uses = {name: others for name, others in uses.items() if name not in free}
