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
from cdra_mm.mm import packages

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


@pytest.mark.slow
def test_wheel_holds_every_config_and_tool_and_no_copy_lies_in_the_repository(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        ours = {
            f'cdra_mm/.mim/{path.relative_to(repository)}'
            for path in (repository / folder).rglob('*.py')
        }
        assert len(ours) > 5
        assert ours <= names
        assert (repository / 'cdra_mm/.mim' / folder).is_symlink()
    assert not [name for name in names if name.split('/')[0] in ('configs', 'tools', 'tests')]


@pytest.mark.slow
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


@pytest.mark.slow
def test_tool_of_the_wheel_runs_outside_the_repository(installed, tmp_path):
    path = config(tmp_path / 'ours.py', "['cdra_mm::cdra/demo.py']")
    result = run([str(installed / 'cdra_mm/.mim/tools/train.py'), path], installed, tmp_path)
    # Paths in a config count from where a run starts, and nothing lies there.
    assert result.returncode == 2, result.stderr
    assert 'prepare_data.py demo data/demo' in result.stderr


@pytest.mark.slow
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
    before = {**packages.MODULE2PACKAGE, 'mmseg': 'mmsegmentation'}
    before.pop('cdra_mm', None)
    table = dict(before)
    monkeypatch.setattr(packages, 'MODULE2PACKAGE', table)
    monkeypatch.setattr(packages, '_is_distribution', lambda name: name in there)
    packages.register_packages()
    assert table == {**before, 'mmseg': expected, 'cdra_mm': 'cdra_mm'}
    packages.register_packages()
    assert table == {**before, 'mmseg': expected, 'cdra_mm': 'cdra_mm'}


def test_base_of_ours_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"cdra_mm::cdra/dem\.py.*did you mean 'cdra/demo\.py'"):
        packages.bases('cdra_mm::cdra/dem.py')
