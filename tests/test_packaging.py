"""What an installed wheel holds, and what configs find with it, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from cdra_mm.core import ConfigError
from cdra_mm.core.native.building import source_files
from cdra_mm.mm import packages
from cdra_mm.mm.host import runner_parts
from tests.test_imports import imported, module_of

# What measures this package and fills tables runs from a checkout alone.
LABORATORY = (
    'cdra_mm/benchmark/',
    'cdra_mm/tables/',
    'configs/tables/',
    'configs/_base_/tables/',
    'tools/benchmark.py',
    'tools/demo.py',
    'tools/mask_table.py',
    'tools/pretended_gpu/',
    'tools/spt_sizes/',
    'tools/stress.py',
    'tools/stressed/',
    'tools/study_data.py',
    'tools/table4.py',
    'tools/tables.py',
)
SOURCES = ('pyproject.toml', 'README.md', 'LICENSE', 'cdra_mm', 'configs', 'tools')
MMSEG_BASE = 'mmseg::vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py'
HOOK = "default_hooks = dict(cdra=dict(type='cdra_mm.CDRAHook'))\n"
REPORT = (
    'for cfg in configs:\n'
    '    print(cfg.model.backbone.type, cfg.model.get("_scope_"), cfg.default_hooks.cdra.type)\n'
)
# What OpenMMLab's own programs do with a config: nothing of ours is imported before.
STOCK = (
    'import sys; from mmengine.config import Config\n'
    'configs = [Config.fromfile(path) for path in sys.argv[1:]]\n' + REPORT
)
OURS = (
    'import sys, cdra_mm; from cdra_mm.mm.launch import load_config, prepare_config\n'
    'from mmengine.registry import MODELS, init_default_scope\n'
    'configs = [load_config(path) for path in sys.argv[1:]]\n'
    + REPORT
    + 'prepare_config(configs[0])\n'
    'init_default_scope(configs[0].default_scope)\n'
    'print(type(MODELS.build(configs[0].model)).__name__)\n'
    'print(cdra_mm.__file__)\n'
)
STEPS = """
import sys, cdra_mm
from cdra_mm.commands import start
options = [
    '--cfg-options', f'model.backbone.init_cfg.checkpoint={sys.argv[1]}', 'train_cfg.max_iters=2',
    'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
    'default_hooks.cdra.num_samples=4', 'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
]
start(['data', 'prepare', 'demo', 'data/demo'])
start(['train', 'cdra/demo', *options])
start(['test', 'cdra_mm::cdra/demo.py', 'work_dirs/demo/iter_2.pth', *options])
start(['merge', 'cdra/demo', 'work_dirs/demo/iter_2.pth', 'merged.pth', *options])
start(['analyze', 'work_dirs/demo', '--out', 'report', '--format', 'png', '--no-predictions'])
start(['predict', 'cdra/demo', 'merged.pth', 'data/demo/images/validation', '--out', 'predicted',
       '--device', 'cpu', *options])
print(cdra_mm.__file__)
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory, repository) -> Path:
    """A wheel of the working tree, built without network and without writing into the tree."""
    folder = tmp_path_factory.mktemp('wheel')
    (folder / 'source').mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (repository / name).is_dir() else shutil.copy
        options = {'symlinks': True} if copy is shutil.copytree else {}
        copy(repository / name, folder / 'source' / name, **options)
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', str(folder), str(folder / 'source'))
    (found,) = folder.glob('*.whl')
    return found


@pytest.fixture(scope='module')
def installed(tmp_path_factory, wheel) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp('installed')
    pip('install', '--no-deps', '--no-index', '--target', str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def python(code: str, *arguments: str, package: Path, cwd: Path) -> list[str]:
    """Lines that a fresh process prints that knows the package from one folder only."""
    result = run(['-c', code, *arguments], package, cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def run(arguments: list[str], package: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


def config(path: Path, bases: str, text: str = '') -> str:
    path.write_text(f'_base_ = {bases}\n{text}')
    return str(path)


def test_wheel_holds_what_an_installed_user_can_use(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder in ('cdra_mm', 'configs', 'tools'):
        for path in (repository / folder).rglob('*.py'):
            name = str(path.relative_to(repository))
            if '.mim' not in path.parts and not name.startswith(LABORATORY):
                expected.add(name if folder == 'cdra_mm' else f'cdra_mm/.mim/{name}')
    assert {name for name in names if name.endswith('.py')} == expected
    assert 'cdra_mm/.mim/configs/cdra/demo.py' in expected
    assert {'cdra_mm/py.typed', 'cdra_mm/.mim/model-index.yml'} <= names
    assert {f'cdra_mm/core/native/{path.name}' for path in source_files()} <= names
    assert [name for name in names if 'class_names' in name and name.endswith('.txt')]
    for folder in ('configs', 'tools'):  # no copy lies in the repository
        assert (repository / 'cdra_mm/.mim' / folder).is_symlink()


def test_wheel_needs_nothing_that_it_does_not_hold(installed):
    files = sorted((installed / 'cdra_mm').rglob('*.py'))
    modules = {module_of(path, installed) for path in files}
    assert len(modules) > 200
    for path in files:
        for name in imported(path, installed):
            if name.split('.')[0] == 'cdra_mm':  # a module, or a name in one
                assert {name, name.rpartition('.')[0]} & modules, f'{path} imports {name}'


def test_wheel_installs_the_program(installed, tmp_path):
    (text,) = installed.glob('cdra_mm-*.dist-info/entry_points.txt')
    assert text.read_text().split('\n')[:2] == ['[console_scripts]', 'cdra = cdra_mm.commands:main']
    result = run([str(installed / 'bin/cdra'), 'train', 'cdra/no'], installed, tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith('error: config cdra/no does not exist') and 'vtab/{caltech101' in line
    assert '_base_/' not in line and 'tables' not in line


def test_installed_user_goes_from_data_to_predictions(installed, repository, tmp_path):
    """Every step away from the checkout, with a shipped config; in one process, as imports cost."""
    pytest.importorskip('sklearn', reason='the demo data need scikit-learn')
    weights = repository / 'assets/vit_tiny32_in200.pth'
    lines = python(STEPS, str(weights), package=installed, cwd=tmp_path)
    assert Path(lines[-1]).is_relative_to(installed)
    made = ('merged.pth', 'report/report.html', 'predicted/shares.csv', 'work_dirs/demo/iter_2.pth')
    for name in made:
        assert (tmp_path / name).is_file(), name


def test_configs_find_our_base_and_that_of_mmseg_in_the_wheel(installed, tmp_path):
    ours = config(tmp_path / 'ours.py', "['cdra_mm::cdra/demo.py']")
    theirs = config(tmp_path / 'theirs.py', f'[{MMSEG_BASE!r}]', HOOK)
    *lines, location = python(OURS, ours, theirs, package=installed, cwd=tmp_path)
    assert Path(location).is_relative_to(installed)
    assert lines[-3:] == [
        'mmpretrain.VisionTransformer None cdra_mm.CDRAHook',
        'VisionTransformer mmseg cdra_mm.CDRAHook',
        'EncoderDecoder',
    ]


def test_tool_of_the_wheel_runs_outside_the_repository(installed, tmp_path):
    path = config(tmp_path / 'ours.py', "['cdra_mm::cdra/demo.py']")
    result = run([str(installed / 'cdra_mm/.mim/tools/train.py'), path], installed, tmp_path)
    # Paths in a config count from where a run starts, and nothing lies there.
    assert result.returncode == 2, result.stderr
    assert 'cdra data prepare demo data/demo' in result.stderr


def test_stock_programs_find_the_bases_that_a_config_asks_us_for(repository, tmp_path):
    config(tmp_path / 'more.py', '[]', 'more = 1\n')
    ours = "__import__('cdra_mm').bases('cdra_mm::cdra/demo.py')"
    theirs = f"__import__('cdra_mm').bases({MMSEG_BASE!r}, './more.py')"
    paths = (
        config(tmp_path / 'ours.py', ours),
        config(tmp_path / 'theirs.py', theirs, HOOK),
    )
    assert python(STOCK, *paths, package=repository, cwd=tmp_path) == [
        'mmpretrain.VisionTransformer None cdra_mm.CDRAHook',
        'VisionTransformer mmseg cdra_mm.CDRAHook',
    ]


@pytest.mark.parametrize(
    ('there', 'expected'),
    [
        ({'onedl-mmsegmentation'}, 'onedl-mmsegmentation'),
        ({'mmsegmentation', 'onedl-mmsegmentation'}, 'mmsegmentation'),
        (set(), 'mmsegmentation'),
    ],
)
def test_package_table_names_the_fork_where_it_alone_is_installed(there, expected, monkeypatch):
    before = {**runner_parts.packages(), 'mmseg': 'mmsegmentation'}
    before.pop('cdra_mm', None)
    table = dict(before)
    monkeypatch.setattr(runner_parts, 'MODULE2PACKAGE', table)
    monkeypatch.setattr(packages, '_is_distribution', lambda name: name in there)
    packages.register_packages()
    assert table == {**before, 'mmseg': expected, 'cdra_mm': 'cdra_mm'}
    packages.register_packages()
    assert table == {**before, 'mmseg': expected, 'cdra_mm': 'cdra_mm'}


def test_base_of_ours_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"cdra_mm::cdra/dem\.py.*did you mean 'cdra/demo\.py'"):
        packages.bases('cdra_mm::cdra/dem.py')


def test_floor_file_states_the_lowest_versions_of_the_project(repository):
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 reads no TOML')
    project = tomllib.loads((repository / 'pyproject.toml').read_text())['project']
    asked = [*project['dependencies'], *project['optional-dependencies']['onedl']]
    # What the extra asks for comes later, and is more.
    floors = dict(text.split('>=') for text in asked if '>=' in text)
    lowest = {f'{name}=={version}' for name, version in floors.items()}
    lines = (repository / 'tests/floor.txt').read_text().splitlines()
    stated = {line.partition('#')[0].strip() for line in lines} - {''}
    assert {text for text in stated if not text.startswith('torchvision')} == lowest


def test_citation_and_project_state_one_version_and_paper(repository):
    yaml = pytest.importorskip('yaml')
    citation = yaml.safe_load((repository / 'CITATION.cff').read_text())
    pyproject = (repository / 'pyproject.toml').read_text()
    assert f"version = '{citation['version']}'" in pyproject
    assert f"Paper = '{citation['preferred-citation']['url']}'" in pyproject
    assert citation['preferred-citation']['title'].split('via ')[1] in (
        (repository / 'README.md').read_text().replace('\n', ' ')
    )
