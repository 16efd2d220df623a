"""What is used of OpenMMLab's insides stands in one place, and is refused where it has changed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from cdra_mm.errors import HostError
from cdra_mm.mm.host import signatures
from cdra_mm.mm.host.known_names import KNOWN_NAMES, require
from cdra_mm.mm.host.signatures import HostName, check_names

HOSTS = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')
# Parts of a run: whoever puts something into one of them changes what mmengine does.
PARTS = {'runner', 'loop', 'loader', 'dataset', 'inferencer', 'preprocessor'}
# Of torch: no host, and the same in every release that is supported.
OF_TORCH = {
    '_buffers',
    '_call_impl',
    '_compiled_call_impl',
    '_dynamo',
    '_exit',  # of os
    '_forward_hooks',
    '_forward_pre_hooks',
    '_is_in_bad_fork',
    '_load_state_dict_pre_hooks',
    '_modules',
    '_parameters',
    '_register_load_state_dict_pre_hook',
    '_version',
}


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.endswith('__')


PRIVATE = {entry.name for entry in KNOWN_NAMES if is_private(entry.name)}


def hosts_of(tree: ast.AST) -> dict[str, str]:
    """Names that a file has from a host, with their dotted paths."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or '').split('.')[0] in HOSTS:
                found |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.asname or a.name: a.name for a in node.names if a.name in HOSTS}
    return found


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, variables, attributes of ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == 'self':
                found.add(node.attr)
    return found


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ''


def insides(text: str, own: set[str] | None = None) -> list[str]:
    """What a file uses of the insides of a host: private names, and attributes that it replaces.

    Args:
        text: Its source.
        own: Private names of this package; by default those of the file.
    """
    tree = ast.parse(text)
    own = (own_names(tree) if own is None else own) - PRIVATE
    hosts, found = hosts_of(tree), []
    for path in hosts.values():
        found += [path for part in path.split('.') if is_private(part)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in PRIVATE:
            found.append(f'the name {node.value!r}')
        elif isinstance(node, ast.ClassDef):
            found += overridden(node, hosts)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            target = node.args[0] if node.args else node
            replaces = node.func.id in ('setattr', 'delattr', 'patched')
            if replaces and root_of(target) not in ('', 'self'):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            of_part = isinstance(node.value, ast.Attribute) and root_of(node.value) in PARTS
            if of_part or root_of(node.value) in hosts:
                found.append(f'{ast.unparse(node)} = ...')
        elif isinstance(node, ast.Attribute):
            is_self = isinstance(node.value, ast.Name) and node.value.id in ('self', 'cls')
            known = own | OF_TORCH
            if is_private(node.attr) and node.attr not in known and not is_self:
                found.append(ast.unparse(node))
            elif not isinstance(node.ctx, ast.Load):
                last = node.value.attr if isinstance(node.value, ast.Attribute) else ''
                if root_of(node.value) in hosts or {root_of(node.value), last} & PARTS:
                    found.append(f'{ast.unparse(node)} = ...')
    return found


def inner_names(cls: type) -> set[str]:
    """Private names that a class and those it derives from define or use."""
    found = set()
    for base in cls.__mro__:
        for name, value in vars(base).items():
            code = getattr(inspect.unwrap(value), '__code__', None)
            found |= {name, *(code.co_names if code else ())}
    return {name for name in found if is_private(name)}


def overridden(node: ast.ClassDef, hosts: dict[str, str]) -> list[str]:
    """Private names of a class of a host that a class of ours defines or uses as its own."""
    found = []
    for base in node.bases:
        if not isinstance(base, ast.Name) or base.id not in hosts:
            continue
        module, _, name = hosts[base.id].rpartition('.')
        inner = inner_names(getattr(import_module(module), name))
        for each in ast.walk(node):
            if isinstance(each, ast.FunctionDef) and each.name in inner:
                found.append(f'{node.name}.{each.name}')
            elif isinstance(each, ast.Attribute) and each.attr in inner:
                if isinstance(each.value, ast.Name) and each.value.id == 'self':
                    found.append(f'{node.name}: self.{each.attr}')
    return found


@pytest.mark.parametrize(
    'text',
    [
        'runner._load_from',
        'loop._max_iters = 3',
        'self.runner.loop.dataloader = other',
        'loader.collate_fn = other',
        "getattr(hub, '_runtime_info', None)",
        "object.__setattr__(cfg, '_filename', 'x')",
        "patched(model, 'extract_feat', other)",
        "setattr(runner, 'save_checkpoint', other)",
        'del loop.run_iter',
        'from mmengine.optim import _ParamScheduler',
        'from mmengine.runner import checkpoint\ncheckpoint.load_from_http = other',
        'from mmengine.config.utils import MODULE2PACKAGE as m\nm["a"] = 1',
        'runner.hooks[0] = other',
        'from mmengine.hooks import CheckpointHook\n'
        'class Own(CheckpointHook):\n def _save_best_checkpoint(self): ...',
        'from mmengine.model import BaseModule\n'
        'class Own(BaseModule):\n def init_weights(self): self._is_init = True',
    ],
)
def test_scan_notices(text):
    assert insides(text)


@pytest.mark.parametrize(
    'text',
    [
        'self._own = 1\nother._own',
        'cfg.work_dir = 3',
        'layer._parameters',
        'from mmengine.hooks import Hook\nclass Own(Hook):\n def _own(self): ...',
    ],
)
def test_scan_lets_pass(text):
    assert not insides(text)


def scanned(repository: Path) -> list[Path]:
    rooms = [repository / 'cdra_mm' / name for name in ('mm', 'tables', 'analysis', 'commands')]
    paths = [path for room in [*rooms, repository / 'tools'] for path in sorted(room.rglob('*.py'))]
    # What stands in for CUDA takes torch's inner parts, and nothing of OpenMMLab's.
    return [path for path in paths if path.parent.name not in ('host', 'pretended_gpu')]


def test_insides_of_openmmlab_are_used_by_host_alone(repository):
    texts = {path: path.read_text() for path in scanned(repository)}
    assert len(texts) > 100
    own = set().union(*(own_names(ast.parse(text)) for text in texts.values()))
    found = {path.name: insides(text, own) for path, text in texts.items()}
    assert not {name: each for name, each in found.items() if each}


def test_every_inner_name_in_host_is_written_down(repository):
    """And what is written down is used."""
    room = repository / 'cdra_mm' / 'mm' / 'host'
    texts = {path: path.read_text() for path in sorted(room.glob('*.py'))}
    trees = [ast.parse(text) for path, text in texts.items() if path.name != 'known_names.py']
    used = {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= {n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                used |= {alias.name for alias in node.names}
    own = set().union(*(own_names(tree) for tree in trees)) - PRIVATE
    private = {name for name in used if isinstance(name, str) and is_private(name)}
    assert not private - own - OF_TORCH - PRIVATE
    # What wraps a forward is known by what it leaves; whose backend is replaced, by its attribute.
    assert {entry.name for entry in KNOWN_NAMES} - used <= {'wrap_forward'}


def opened_classes():
    """Classes of host that put steps of ours into one of OpenMMLab's."""
    from cdra_mm.mm.host import mmpretrain_names, mmseg_names, runner_parts

    for module in (runner_parts, mmpretrain_names, mmseg_names):
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                if cls.__base__.__module__.split('.')[0] in HOSTS:
                    yield cls


def test_opened_steps_have_names_that_the_class_has_nothing_else_of():
    """CheckpointHook, say, has a setting ``save_best``, which would hide a method of that name."""
    found = list(opened_classes())
    assert len(found) == 5
    for cls in found:
        used = set()
        for base in cls.__mro__[1:]:
            for method in vars(base).values():
                code = getattr(
                    inspect.unwrap(method) if callable(method) else None, '__code__', None
                )
                used |= set(code.co_names) if code else set()
        own = {name for name in vars(cls) if not name.startswith('_')}
        assert not own & used, cls


@pytest.mark.parametrize('package', ['mmengine', 'mmpretrain', 'mmseg'])
def test_installed_releases_are_known(package):
    require(package)
    assert [entry for entry in KNOWN_NAMES if entry.package == package]


def test_a_reason_is_given_for_each_name():
    assert all(entry.why for entry in KNOWN_NAMES)
    assert len({entry.path for entry in KNOWN_NAMES}) == len(KNOWN_NAMES) > 40


class Thing:
    """What is known of it: a method, an attribute of the class, one that it sets."""

    flag = 1

    def __init__(self):
        self._inner = 3

    def _save(self, runner, step):
        return runner, step


KNOWN = {
    'a method': HostName(f'{__name__}.Thing._save', 'save', takes=('self', 'runner', 'step')),
    'an attribute': HostName(f'{__name__}.Thing.flag', 'ask'),
    'one that it sets': HostName(f'{__name__}.Thing._inner', 'count', set_in='__init__'),
}


def other_arguments(self, runner, step, meta):
    return runner


def sets_nothing(self):
    self.inner = 3


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    [
        ('a method', ('_save', other_arguments),
         r'Thing\._save takes \(self, runner, step, meta\), expected \(self, runner, step\)'),
        ('a method', ('_save', None), r'Thing\._save is missing'),
        ('a method', ('_save', 3), r'Thing\._save is no function'),
        ('an attribute', ('flag', None), r'Thing\.flag is missing'),
        ('one that it sets', ('__init__', sets_nothing),
         r'Thing\.__init__ does not use _inner'),
    ],
)  # fmt: skip
def test_a_name_that_has_changed_is_refused_by_name(monkeypatch, name, change, words):
    check_names('torch', KNOWN.values(), 'thing 1.0')
    attribute, value = change
    if value is None:
        monkeypatch.delattr(Thing, attribute)
    else:
        monkeypatch.setattr(Thing, attribute, value)
    with pytest.raises(HostError, match=f'^torch .* is not known to cdra_mm: {words}') as caught:
        check_names('torch', [KNOWN[name]], 'thing 1.0')
    message = str(caught.value)
    assert '\n' not in message and f'(used to {KNOWN[name].why})' in message
    assert message.endswith('; install thing 1.0, or a newer cdra_mm')


def test_a_name_that_a_release_may_lack_is_not_asked_for():
    path = f'{__name__}.Thing._none'
    check_names('torch', [HostName(path, 'try', optional=True)], 'thing 1.0')
    with pytest.raises(HostError, match='Thing._none is missing'):
        check_names('torch', [HostName(path, 'try')], 'thing 1.0')


def test_a_module_that_is_gone_is_refused():
    with pytest.raises(HostError, match='it has no mmengine.nothing'):
        check_names('mmengine', [HostName('mmengine.nothing._x', 'try')], 'thing 1.0')


def test_a_new_mmengine_is_refused_when_host_is_imported(monkeypatch):
    from mmengine.runner import Runner

    monkeypatch.setattr(Runner, '_maybe_compile', lambda self: None)
    with pytest.raises(HostError, match=r'mmengine .*Runner\._maybe_compile takes \(self\)'):
        require.__wrapped__('mmengine')
    assert signatures.HostError is HostError


FRESH = """
import sys, types, warnings
import torch, mmengine, mmengine.runner, mmengine.hooks, mmengine.optim, mmengine.config.utils
import mmengine.visualization, mmengine.dataset, mmengine.model, mmengine.infer
{also}
HOSTS = ('torch', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'warnings')

def state():
    found = {{}}
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] in HOSTS and isinstance(module, types.ModuleType):
            for key, value in list(vars(module).items()):
                found[name, key] = id(value)
                if isinstance(value, type) and value.__module__.split('.')[0] in HOSTS:
                    for attribute, part in list(vars(value).items()):
                        found[name, key, attribute] = id(part)
                elif isinstance(value, dict) and 'mm' in name[:2]:
                    found[name, key, 'entries'] = repr(sorted(map(str, value.items())))
    return found

before, held = state(), list(warnings.filters)
{statement}
after = state()
changed = [key for key, value in before.items() if after.get(key) != value]
# Submodules that were not loaded before become attributes; caches of abc are no state of theirs.
print('changed', [key for key in changed if '_abc_impl' not in key])
print('filters', [f for f in warnings.filters if f not in held])
"""


def fresh(repository, statement, also=''):
    code = FRESH.format(statement=statement, also=also)
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(line.split(' ', 1) for line in result.stdout.splitlines() if ' ' in line)


def test_importing_changes_nothing_of_openmmlab(repository):
    also = 'import mmseg.apis, mmseg.models'
    found = fresh(repository, 'import cdra_mm.mm', also)
    assert found == {'changed': '[]', 'filters': '[]'}


def test_import_check_would_notice(repository):
    statement = 'from cdra_mm.mm.guards import set_guards; set_guards()'
    found = fresh(repository, statement)
    assert 'load_from_http' in found['changed'] and '_schemes' in found['changed']
    assert 'MultiScaleDeformableAttention' in found['filters']
