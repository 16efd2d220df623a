"""Runs a script of training under a clock of its stages, until some iterations are done.

    python -m cdra_mm.benchmark.start.traced OUT.json BEGIN ITERATIONS SCRIPT ARGUMENTS ...

``BEGIN`` is when the process was started (``time.time``). The functions of `stages` are replaced
as soon as their module is imported, before anyone else takes them from there. Writes what each
stage took until the first iteration, and what the iterations took, and ends the process.
"""

from __future__ import annotations

import functools
import importlib.abc
import json
import os
import resource
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .stage_clock import Spent, StageClock
from .stages import FIRST, IMPORTS, ITERATIONS, OTHER, STAGES, STEPS

__all__ = ['Tracer', 'main']


class Tracer(importlib.abc.MetaPathFinder):
    """Times imports and the functions of the stages, as a finder of modules.

    Args:
        clock: What adds up.
        stages: Stage -> names of its functions.
        iterations: Names of the functions that are one iteration.
        finished: Called when the `count`-th iteration is over.
        count: Iterations to do.
    """

    def __init__(
        self,
        clock: StageClock,
        stages: Mapping[str, Sequence[str]],
        iterations: Sequence[str],
        count: int,
        finished: Callable[[], None],
    ) -> None:
        self.clock, self.count, self.finished = clock, count, finished
        self.done = 0
        self.before: dict[str, Spent] = {}  # the first iteration
        self._wanted: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {}
        for stage, names in stages.items():
            for name in names:
                self._want(name, functools.partial(self._timed, stage))
        for name in iterations:
            self._want(name, self._counted)

    def _want(self, name: str, wrap: Callable[[Any], Any]) -> None:
        module, _, attribute = name.partition(':')
        self._wanted.setdefault(module, []).append((attribute, wrap))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that is timed."""
        spec = PathFinder.find_spec(fullname, path, target)
        loader = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, 'exec_module'):
            return spec
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self.clock.stage(IMPORTS):
                run(module)
            self._replace_in(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _replace_in(self, module: ModuleType) -> None:
        for attribute, wrap in self._wanted.get(module.__name__, ()):
            owner: Any = module
            *path, name = attribute.split('.')
            for part in path:
                owner = getattr(owner, part, None)
            found = vars(owner).get(name) if owner is not None else None
            if isinstance(found, classmethod | staticmethod):
                setattr(owner, name, type(found)(wrap(found.__func__)))
            elif found is not None:
                setattr(owner, name, wrap(found))

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.stage(stage):
                return function(*args, **kwargs)

        return timed

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.done:
                self.before = {name: Spent(**asdict(s)) for name, s in self.clock.stop().items()}
            with self.clock.stage(STEPS):
                result = function(*args, **kwargs)
            self.done += 1
            if self.done == self.count:
                self.finished()
            return result

        return counted


def main(words: Sequence[str]) -> None:
    """Runs a script; see above."""
    out, begin, count, script, *arguments = words
    clock = StageClock(FIRST, float(begin))

    def finished() -> None:
        before, all_of_it = tracer.before, clock.stop()
        # Between two iterations nothing but loading and hooks happens: theirs belongs to them.
        steps = {
            key: sum(getattr(spent, key) for spent in all_of_it.values())
            - sum(getattr(spent, key) for spent in before.values())
            for key in ('seconds', 'cpu_seconds')
        }
        report = {
            'stages': {name: asdict(spent) for name, spent in before.items()},
            'steps': steps,
            'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        Path(out).write_text(json.dumps(report), encoding='utf-8')
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # what would follow, a validation and a checkpoint, is not asked for

    tracer = Tracer(clock, STAGES, ITERATIONS, int(count), finished)
    sys.meta_path.insert(0, tracer)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)  # as the interpreter does
    clock.go_on_as(OTHER)
    runpy.run_path(script, run_name='__main__')
    raise SystemExit(f'{script} ended before {count} iterations were done')


if __name__ == '__main__':
    main(sys.argv[1:])
