"""What is known of a run: from its work directory, a checkpoint, an adapter file or a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from cdra_mm.core import Plan
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.core.artifacts.state_keys import adapter_prefix
from cdra_mm.core.planning.plan import SparseMatrix, Vector
from cdra_mm.errors import CheckpointError, ConfigError
from cdra_mm.last_checkpoint import pointed_at
from cdra_mm.mm.backbone import PREFIX
from cdra_mm.mm.checkpoints.record import Record, read_record
from cdra_mm.mm.compatibility import load_checkpoint
from cdra_mm.mm.hook import PLAN_FILE
from cdra_mm.mm.inputs import check_weight_file
from cdra_mm.mm.launch import load_config
from cdra_mm.mm.planning.kept_scores import SCORES_FILE, Kept, read_kept
from cdra_mm.mm.run_results import ADAPTER_FILE
from cdra_mm.mm.summary import SUMMARY
from cdra_mm.pictures import WeightPositions
from cdra_mm.pictures.plan_map import positions_of
from cdra_mm.storage.strict_json import strict_json

from .mask_run import AT, read_mask_file
from .run_log import read_log

__all__ = ['Run', 'read_run']

MARK = 'cdra'  # the child of an adapted module that holds its adapters


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        path: What was named.
        name: A short name for tables and legends.
        work_dir: Its work directory, None where only one file is known.
        plan: Its plan, None where the whole backbone is trained or nothing tells.
        method: Name of its method, '' if unknown.
        settings: Its settings; plain types.
        config: Its config, None if unknown.
        summary: `summary.json`; empty while the run has not ended.
        scalars: What it logged, by rising step, joined over resumes.
        checkpoint: Its checkpoint, None if there is none.
        adapter: Tensors of its adapters, by their names in the backbone.
        base_record: What its checkpoint says of the frozen base.
        merged: What a merged checkpoint says of its origin; empty for any other.
        kept: Its kept scores.
        missing: What cannot be shown and why, in plain words.
    """

    path: Path
    name: str
    work_dir: Path | None = None
    plan: Plan | None = None
    method: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    scalars: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Path | None = None
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    base_record: Record | None = None
    merged: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None
    missing: list[str] = field(default_factory=list)

    @cached_property
    def positions(self) -> WeightPositions:
        """Where the weights of its backbone sit."""
        return positions_of(self.plan or Plan(), self.kept.shapes if self.kept else ())


def read_run(path: str | Path, config: str | Path | None = None) -> Run:
    """Reads everything that can be known of a run.

    Args:
        path: A work directory, a checkpoint (``.pth``), an adapter file (``.safetensors``), a
            plan (``.json``) or a mask file (``.npz@budget``). What lies beside a file is not looked
            at: it may be another run's.
        config: Its config, where it is not in the work directory. The one whose text a
            checkpoint holds is a program, and is not run.

    Returns:
        The run; what is missing is noted in it.

    Raises:
        CheckpointError: If the path does not exist, or its file is damaged or foreign.
        ConfigError: If it is a folder without a run, or of no known kind.
        PlanError: If its plan cannot be read.
    """
    named, _, budget = str(path).partition(f'.npz{AT}')
    path = Path(f'{named}.npz' if budget else path).expanduser()
    if not path.exists():
        raise CheckpointError(
            f'{path} does not exist: name a work directory, a checkpoint or a plan'
        )
    run = Run(path, path.resolve().stem if path.is_file() else path.resolve().name)
    if config is not None:
        run.config = load_config(config)
    if path.is_dir():
        _read_work_dir(run)
    elif path.suffix == '.json':
        _read_plan(run, path)
        run.missing.append(
            'A plan alone was named: what was learnt, logged and measured is unknown.'
        )
    elif path.suffix == '.safetensors':
        _read_adapter(run, path)
        run.missing.append(
            'An adapter file alone was named: what was logged and measured is unknown.'
        )
    elif path.suffix in ('.pth', '.pt'):
        _read_checkpoint(run, path)
        run.missing.append('A checkpoint alone was named: what was logged and measured is unknown.')
        if run.config is None:
            run.missing.append(
                'The text of the config in a checkpoint is a program and is not run: name the '
                'config with --config, or the work directory, for what needs it (predictions, '
                'relative changes).'
            )
    elif path.suffix == '.npz':
        run.plan, run.kept = read_mask_file(path, budget)
        run.missing.append('Masks alone were named: nothing was trained, logged or measured.')
    else:
        raise ConfigError(
            f'{path} is of no kind that is known here: expected a work directory, a checkpoint '
            '(.pth), an adapter file (.safetensors), a plan (.json) or a mask file (.npz)'
        )
    if run.plan is not None:
        run.method = run.plan.method
        run.settings = run.settings or run.plan.settings
    _note_what_is_missing(run)
    return run


def _read_work_dir(run: Run) -> None:
    folder = run.work_dir = run.path
    run.summary = _read_summary(folder / SUMMARY)
    run.method = str(run.summary.get('method', ''))
    run.scalars, config = read_log(folder)
    run.config = run.config or config
    plan, adapter = folder / PLAN_FILE, folder / ADAPTER_FILE
    checkpoint = _last_checkpoint(folder)
    if not run.summary and not run.scalars and checkpoint is None and not plan.is_file():
        raise ConfigError(
            f'{folder} is no work directory of a run: it holds neither {PLAN_FILE}, {SUMMARY}, a '
            'log nor a checkpoint'
        )
    if plan.is_file():
        _read_plan(run, plan)
    if checkpoint is not None:
        _read_checkpoint(run, checkpoint)
    elif adapter.is_file():
        _read_adapter(run, adapter)
    if (folder / SCORES_FILE).is_file():
        run.kept = read_kept(folder / SCORES_FILE)


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        summary = strict_json(path.read_text(encoding='utf-8'), finite=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read ({error}): remove it to go on') from None
    if not isinstance(summary, dict):
        raise CheckpointError(f'{path} holds no summary of a run: remove it to go on')
    return summary


def _read_plan(run: Run, path: Path) -> None:
    try:
        run.plan = Plan.from_json(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f'{path} cannot be read: {error}') from None
    except ValueError as error:
        raise type(error)(f'{path}: {error}') from None


def _read_adapter(run: Run, path: Path) -> None:
    file = read_adapter(path)
    run.adapter = file.tensors
    run.plan = run.plan or file.plan
    _check_learnt(run, path)


def _check_learnt(run: Run, path: Path) -> None:
    """Refuses factors and values that are not those of the plan, or no finite numbers."""
    expected: dict[str, tuple[int, ...]] = {}
    for block in run.plan.blocks if run.plan else ():
        prefix = adapter_prefix(block.name)
        expected[prefix + 'up'] = len(block.rows), block.rank
        expected[prefix + 'down'] = block.rank, len(block.cols)
    entries: list[Vector | SparseMatrix] = [*run.plan.vectors, *run.plan.sparse] if run.plan else []
    for part in entries:
        if part.indices is not None:
            expected[adapter_prefix(part.name) + 'value'] = (len(part.indices),)
    for name, shape in expected.items():
        held = run.adapter.get(name)
        if held is not None and (held.shape != shape or not bool(held.isfinite().all())):
            raise CheckpointError(
                f'{path}: {name} is {list(held.shape)}, expected {list(shape)} finite numbers: it '
                'is damaged, of another run than the plan, or has diverged; name another'
            )


def _read_checkpoint(run: Run, path: Path) -> None:
    check_weight_file(str(path))
    loaded = load_checkpoint(path)
    state = loaded.get('state_dict') if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f'{path} has no state_dict: it is no checkpoint of an OpenMMLab run')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    record, meta = read_record(state, PREFIX), loaded.get('meta') or {}
    run.checkpoint, run.base_record = path, record
    run.merged = _settings(meta.get('cdra_merged'), path)
    if record is not None:
        run.method, run.settings = record.method, record.settings
        run.plan = run.plan or record.plan
    elif run.merged:
        run.method = str(run.merged.get('method', ''))
        run.settings = _settings(run.merged.get('settings'), path)
    elif run.work_dir is None:
        raise CheckpointError(
            f'{path} was not written by a run with CDRAHook: there is no plan in it to show'
        )
    trained = _trained_whole(run.plan)
    run.adapter = {
        key.removeprefix(PREFIX): value.clone()  # not the memory of the whole file
        for key, value in state.items()
        if key.startswith(PREFIX)
        and (MARK in key.split('.') or key.removeprefix(PREFIX) in trained)
    }
    _check_learnt(run, path)


def _settings(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, Mapping | type(None)) or not all(
        isinstance(key, str) for key in value or ()
    ):
        raise CheckpointError(f'{path} is damaged: its meta.cdra_merged holds no settings by name')
    return dict(value or {})


def _trained_whole(plan: Plan | None) -> set[str]:
    if plan is None:
        return set()
    return {*plan.also_train, *(vector.name for vector in plan.vectors)}


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint, also of a work directory that was moved."""
    named = pointed_at(folder)
    if named is not None:
        for path in (folder / named.name, named):
            if path.is_file():
                return path
    found = sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _note_what_is_missing(run: Run) -> None:
    if run.merged:
        run.missing.append(
            'The checkpoint is merged: it no longer tells its adapters from the base weights, so '
            'plan, ranks and updates cannot be shown; name the checkpoint with adapters for that '
            f'({run.merged.get("checkpoint", "unknown")}).'
        )
    elif run.plan is None:
        what = run.method or 'the method'
        run.missing.append(f'There is no plan: {what} trains the whole backbone, or nothing tells.')
    if run.work_dir is not None and 'training_seconds' not in run.summary:
        run.missing.append('The run has not ended: its cost and last metrics are not known yet.')
    if run.work_dir is not None and run.checkpoint is None and not run.adapter:
        run.missing.append('There is no checkpoint yet: what was learnt cannot be shown.')
