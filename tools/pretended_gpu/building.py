"""Builds the library that torch takes for CUDA, once for a release of torch.

A C compiler and the headers of the wheels that torch's CUDA build brings are all that it takes.
Every function that the headers declare is there: those of the .c files beside this one, and for the
rest functions that do nothing and return 0. So torch, Triton and the libraries that they load find
all their names, whatever the release.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from cdra_mm.errors import CDRAError

__all__ = ['LIBRARY', 'BuildError', 'library']

LIBRARY = 'libcuda.so.1'  # the driver's name: nothing looks for another one where it is loaded
SOURCES = Path(__file__).parent
CUDA = 13
# Declared or called: stubs of inline functions and macros do no harm.
FUNCTION = re.compile(r'\b((?:cuda|cublas|cu|__cuda)[A-Z]\w*)\s*\(')
GEMM = re.compile(r'cublas(?:LtMatmul|.*(?:gemm|gemv|dot|trsm)\w*)', re.IGNORECASE)


class BuildError(CDRAError):
    """The library cannot be built here."""


def library() -> Path:
    """The built library, from the cache of the user where it is there already.

    Beside it lies a link that compilers find, and the caches of what is compiled for it.

    Returns:
        ``$XDG_CACHE_HOME/cdra_mm/pretended_gpu/KEY/libcuda.so.1``, of a key that says which torch
        and which sources.

    Raises:
        BuildError: If the platform, torch, a compiler or a header is missing, with what is needed.
    """
    machine = f'{platform.system()} {platform.machine()}'
    if machine != 'Linux x86_64':
        raise BuildError(f'the pretended GPU needs Linux on x86-64, this is {machine}')
    torch = _torch_version()
    digest = hashlib.sha256(torch.encode())
    for path in sorted([*SOURCES.glob('*.[ch]'), Path(__file__)]):
        digest.update(path.read_bytes())
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = cache / 'cdra_mm' / 'pretended_gpu' / f'torch-{torch}-{digest.hexdigest()[:12]}'
    if not (folder / LIBRARY).is_file():
        _build_whole(folder)
    return folder / LIBRARY


def _torch_version() -> str:
    """The release of torch, without loading it: it would load the real libraries.

    Raises:
        BuildError: If there is none, or none for CUDA 13.
    """
    spec = find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError('the pretended GPU needs torch, which is not installed')
    text = (Path(spec.origin).parent / 'version.py').read_text()
    values = dict(re.findall(r"^(\w+)\b.*= '([^']*)'$", text, re.MULTILINE))
    version, cuda = values.get('__version__', '?'), values.get('cuda', 'no CUDA')
    if cuda.partition('.')[0] != str(CUDA):
        raise BuildError(
            f'the pretended GPU needs a torch that is built for CUDA {CUDA}; '
            f'torch {version} is built for {cuda}'
        )
    return version


def _headers() -> Path:
    """The folder of CUDA's headers among the installed packages.

    Raises:
        BuildError: If there is none.
    """
    spec = find_spec('nvidia')
    for root in spec.submodule_search_locations or () if spec else ():
        found = Path(root) / f'cu{CUDA}' / 'include'
        if all((found / name).is_file() for name in ('cuda.h', 'cublasLt.h')):
            return found
    raise BuildError(
        f'the pretended GPU needs the headers of CUDA {CUDA} that come with the wheels '
        'nvidia-cuda-runtime and nvidia-cublas'
    )


def _build_whole(folder: Path) -> None:
    """Builds under another name, so that what lies there is whole, whoever else builds it."""
    headers = _headers()
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        raise BuildError('the pretended GPU needs a C compiler (cc or gcc), and there is none')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='part-') as made:
        whole = Path(made) / 'whole'
        _build(Path(made), whole, compiler, headers)
        try:
            whole.rename(folder)
        except OSError:  # another process was first
            if not (folder / LIBRARY).is_file():
                raise


def _build(work: Path, out: Path, compiler: str, headers: Path) -> None:
    """Compiles and links everything into a new folder.

    Args:
        work: For what is only needed meanwhile.
        out: Gets the library and the link.
        compiler: Of C.
        headers: The folder of CUDA's.

    Raises:
        BuildError: If the compiler fails, with what it says.
    """
    out.mkdir()
    (work / 'crt').mkdir()
    shutil.copy(SOURCES / 'host_defines.h', work / 'crt')
    (work / 'nv').mkdir()
    (work / 'nv' / 'target').touch()  # only C++ needs what cuda_fp16.h looks for in it
    command = [compiler, '-O2', '-w', '-fPIC', f'-I{work}', f'-I{SOURCES}', f'-I{headers}']
    declared = _run([*command, '-E', '-P', str(SOURCES / 'headers.h')])
    rest = work / 'rest.c'
    rest.write_text(_stubs(set(FUNCTION.findall(declared))))
    sources = [rest, *sorted(SOURCES.glob('*.c'))]
    objects = [work / f'{source.stem}.o' for source in sources]
    for source, compiled in zip(sources, objects, strict=True):
        _run([*command, '-c', str(source), '-o', str(compiled)])
    link = [compiler, '-shared', f'-Wl,-soname,{LIBRARY}', '-o', str(out / LIBRARY)]
    _run([*link, *map(str, objects), '-ldl', '-lpthread'])
    (out / 'libcuda.so').symlink_to(LIBRARY)


def _stubs(names: set[str]) -> str:
    """C of functions that any other function of the same name replaces (weak)."""
    lines = ['int pretended_gemm(void);']
    for name in sorted(names):
        value = 'pretended_gemm()' if GEMM.fullmatch(name) else '0'
        lines.append(f'__attribute__((weak)) int {name}(void) {{ return {value}; }}')
    return '\n'.join(lines) + '\n'


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f'the pretended GPU cannot be built: {done.stderr.strip()[-2000:]}')
    return done.stdout
