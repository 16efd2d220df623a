"""Processes of the tools, and the moment at which one gets SIGKILL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 3600  # seconds that one process may take, on a busy machine too


def start(
    tool: str, words: list[str], log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """A tool with its output in a file."""
    command = [sys.executable, str(REPOSITORY / 'tools' / f'{tool}.py'), *words]
    with log.open('wb') as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)


def read_log(log: Path) -> str:
    return log.read_text(encoding='utf-8', errors='replace')


def kill_at(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> bool:
    """Kills a process at the moment; False if it ended before."""
    begin = time.time()
    while process.poll() is None:
        if is_time():
            process.kill()
            return process.wait() < 0
        if time.time() - begin > LIMIT:
            process.kill()
            raise TimeoutError(f'a process took longer than {LIMIT} s')
        time.sleep(0.001)  # a small checkpoint is written in a few milliseconds
    return False


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a process that has to end well."""
    process.wait(LIMIT)
    if process.returncode:
        print(read_log(log)[-3000:])
        sys.exit(f'error: a process ended with exit code {process.returncode}: {log}')


def half_written(folder: Path, name: str = '*') -> set[str]:
    """Names under which files or folders of this name are, or were, being written."""
    found = (folder.glob(f'.{name}.*.{end}') for end in ('tmp', 'old'))
    return {path.name for paths in found for path in paths}
