"""Compiles the C++ beside it, once for each version of torch and Python on a machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import torch

__all__ = ['Building', 'NativeError', 'built_file', 'is_built', 'load_native', 'source_files']

NAME = 'cdra_native'
SOURCE = Path(__file__).with_name('module.cpp')
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = ('-O2', '-std=c++20', '-shared', '-fPIC', '-w')  # C++20 is what torch's headers want
# The last line of a file that is whole: to load a part of one ends the process. Not on macOS, where
# what follows a signature is not loaded.
END = 'end of cdra_native'
MARKED = sys.platform != 'darwin'
LINES = 5  # of a compiler's complaints, that are told


class NativeError(RuntimeError):
    """The C++ cannot be compiled or loaded here."""


def load_native() -> ModuleType:
    """The compiled module.

    Raises:
        NativeError: If `is_built` says that there is none, or it cannot be loaded.
    """
    path = built_file()
    try:
        loader = ExtensionFileLoader(NAME, str(path))
        spec = spec_from_loader(NAME, loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise NativeError(f'{path} cannot be loaded: {error}') from error
    return module


def is_built() -> bool:
    """Whether the module was compiled on this machine before, and the file is whole.

    Raises:
        NativeError: If that cannot be said.
    """
    return _is_whole(built_file())


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes() if path.is_file() else b''
    except OSError as error:
        raise NativeError(f'{path} cannot be read: {error}') from error
    return bool(content) and (not MARKED or content.endswith(f'{END}\n'.encode()))


def built_file() -> Path:
    """Where the module lies that was compiled of this source for this torch and Python.

    In the folder that torch keeps compiled extensions in (``TORCH_EXTENSIONS_DIR``).

    Raises:
        NativeError: If there is no such folder.
    """
    try:
        sources = [path.read_text(encoding='utf-8') for path in source_files()]
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    except (OSError, RuntimeError) as error:  # a user may have no home
        raise NativeError(str(error)) from error
    made_of = [
        *sources,
        torch.__version__,
        str(torch._C._GLIBCXX_USE_CXX11_ABI),
        sys.version,
        platform.machine(),
        *FLAGS,
    ]
    digest = hashlib.sha256('\0'.join(made_of).encode()).hexdigest()[:16]
    folder = os.environ.get('TORCH_EXTENSIONS_DIR') or Path(cache) / 'torch_extensions'
    return Path(folder).absolute() / 'cdra_mm' / digest / f'{NAME}.so'


def source_files() -> list[Path]:
    """`SOURCE`, and all that it includes of ours."""
    return [SOURCE, *sorted(SOURCE.parent.glob('*.h'))]


class Building:
    """A compiler at work on `built_file`, in a process of its own, which outlives this one.

    The file is there whole or not at all.

    Raises:
        NativeError: Says what is missing.
    """

    def __init__(self) -> None:
        if os.name != 'posix':
            raise NativeError(f'it is compiled on Linux and macOS, not on {platform.system()}')
        self._path, self._parent = built_file(), os.getpid()
        path = self._path
        self._compiler = _compiler()
        compiled = [*self._compiler, *FLAGS, *_of_torch(), str(SOURCE), *_linked()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several processes may compile at once: each to a file of its own.
            handle, made = tempfile.mkstemp('.part', dir=path.parent)
            os.close(handle)
            steps = [
                [*compiled, '-o', made],
                ['chmod', '755', made],  # whoever shares the folder may read it
                ['mv', '-f', made, str(path)],
            ]
            if MARKED:
                steps.insert(1, ['sh', '-c', 'printf "%s\\n" "$1" >> "$2"', 'sh', END, made])
            command = ' && '.join(map(shlex.join, steps))
            self._said = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                ['sh', '-c', f'{command} || {{ rm -f {shlex.quote(made)}; exit 1; }}'],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is not for it
            )
        except OSError as error:
            raise NativeError(f'{path} cannot be written: {error}') from error

    def is_over(self) -> bool:
        """Whether it has ended.

        Raises:
            NativeError: Says what the compiler said, where it failed.
        """
        if os.getpid() != self._parent:  # a child cannot ask for what its parent has started
            return _is_whole(self._path)
        if self._process.poll() is None:
            return False
        with self._said as said:
            if _is_whole(self._path):
                return True
            said.seek(0)
            lines = said.read().decode(errors='replace').splitlines()
        told = [line for line in lines if 'error' in line] or lines or ['it said nothing']
        raise NativeError(f'{self._compiler[0]} failed: ' + '\n'.join(told[:LINES]))

    def wait(self) -> None:
        """Until it is over.

        Raises:
            NativeError: See `is_over`.
        """
        self._process.wait()
        self.is_over()


def _compiler() -> list[str]:
    asked = os.environ.get('CXX', '').strip()
    if asked:
        try:
            command = shlex.split(asked)
        except ValueError as error:
            raise NativeError(f'CXX={asked!r}: {error}') from error
        if not command or shutil.which(command[0]) is None:
            raise NativeError(f'CXX={asked!r} names no program')
        return command
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return [found]
    raise NativeError(f'no C++ compiler was found ({", ".join(COMPILERS)}, or CXX)')


def _of_torch() -> list[str]:
    include = Path(torch.__file__).parent / 'include'
    python = Path(sysconfig.get_paths()['include'])
    for header, what in ((include / 'ATen/ATen.h', "torch's"), (python / 'Python.h', "Python's")):
        if not header.is_file():
            raise NativeError(f'{what} C++ headers are missing ({header})')
    folders = (include, include / 'torch/csrc/api/include', python)
    abi = f'-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}'
    return [abi, *(part for folder in folders for part in ('-isystem', str(folder)))]


def _linked() -> list[str]:
    library = Path(torch.__file__).parent / 'lib'
    libraries = ['-lc10', '-ltorch', '-ltorch_cpu', '-ltorch_python']
    more = ['-undefined', 'dynamic_lookup'] if sys.platform == 'darwin' else []
    return [f'-L{library}', *libraries, *more]
