"""Reading every file of a config's data once, as its training, validation and tests would."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config
from torch.utils.data import DataLoader, Dataset

from cdra_mm.data.layout import Fault
from cdra_mm.errors import CDRAError, DataError
from cdra_mm.progress import Progress, progress_line

from .config_datasets import ConfiguredDataset, build, configured_datasets, in_scope
from .dataset_files import absent_files, folders_read_twice, infos_of, is_local, unpaired_masks
from .findings import DataReport, DatasetReport
from .image_headers import ImageHeader, image_header
from .label_rule import LabelRule, label_rule, last_head
from .likely_mistakes import likely_mistakes
from .one_sample import files_of, load, mask_fault, packed_ids, reason, step_name, wrong_ids
from .size_settings import check_settings, class_remarks

__all__ = ['check_config_data']

MOST_WORKERS = 8


def check_config_data(
    cfg: Config, *, workers: int | None = None, progress: Progress | None = None
) -> DataReport:
    """Reads every file of every loader of a config once, through the config's own loading steps.

    Needs neither the model's weights nor a GPU, and writes nothing.

    Args:
        cfg: A config whose packages are registered (`prepare_config`).
        workers: Processes that read; 0 for this one alone. Default: one for each core, at most 8.
        progress: Called with (samples done, total); a line on the terminal by default.

    Raises:
        DataError: If the config names no data, or a worker process was killed.
        ConfigError: If sizes in the config do not fit each other.
    """
    workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
    show = progress_line('checking', unit='samples') if progress is None else progress
    named = configured_datasets(cfg)
    if not named:
        raise DataError(
            'the config names no data: expected train_dataloader, val_dataloader or '
            'test_dataloader with a dataset'
        )
    with in_scope(cfg):
        head = last_head(cfg.get('model') or {})
        rule = label_rule(head) if isinstance(head, Mapping) else None
        remarks = check_settings(cfg, 'train') if cfg.get('model') else []
        built = [_built(group) for group in _same_data(named)]
        total = sum(report.samples for report, _, _ in built)
        done = 0
        show(0, total)
        for report, configured, dataset in built:
            if dataset is None:
                continue
            remarks += class_remarks(configured, report.classes or None, rule)
            for findings in _checked_samples(dataset, rule, workers, report.where):
                _add(report, findings)
                done += 1
                show(done, total)
            _judge(report, dataset, rule)
    reports = tuple(report for report, _, _ in built)
    _compare_classes(reports)
    name = str(cfg.filename or 'the config')
    return DataReport(name, reports, tuple(dict.fromkeys(remarks)), rule)


@dataclass
class SampleFindings:
    """What was found of one sample; goes from a worker process to this one."""

    size: tuple[int, int] | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)


class SampleChecks(Dataset[SampleFindings]):
    """The samples of a data set, each looked at."""

    def __init__(self, dataset: Any, rule: LabelRule | None) -> None:
        self.dataset, self.rule = dataset, rule
        self.is_local = is_local(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SampleFindings:
        findings = SampleFindings()
        steps = getattr(getattr(self.dataset, 'pipeline', None), 'transforms', None)
        if not steps or not hasattr(self.dataset, 'get_data_info'):
            self._whole(index, findings)
            return findings
        info = self.dataset.get_data_info(index)
        files = files_of(info)
        if self.is_local and not self._files(info, files, findings):
            return findings
        name = files[0] if files else f'sample {index}'
        running: list[str] = []
        try:
            data = load(info, [_Noted(step, running) for step in steps])
        except Exception as error:  # whatever the steps make of a file
            told = reason(error) if not isinstance(error, CDRAError) else str(error)
            # The step that loads the label map fails for the label map.
            mask = str(info.get('seg_map_path') or name)
            where = mask if info.get('img') is not None or len(running) > 1 else name
            findings.faults.append(Fault(where, f'cannot be read: {running[-1]} fails ({told})'))
            return findings
        if data is None:
            findings.faults.append(Fault(name, f'is given up by {running[-1]}'))
            return findings
        self._contents(data, name, findings)
        return findings

    def _files(self, info: Mapping[str, Any], files: list[str], findings: SampleFindings) -> bool:
        """Looks at the files themselves; whether they are worth loading."""
        looked: dict[str, ImageHeader] = {}
        for path in files:
            if '://' in path:
                continue
            looked[path] = image_header(path, is_mask=path == info.get('seg_map_path'))
            if looked[path].fault:
                findings.faults.append(Fault(path, looked[path].fault))
            if looked[path].remark:
                findings.remarks += [(kind, path) for kind in looked[path].remark.split('; ')]
        mask = info.get('seg_map_path')
        if mask in looked and looked[files[0]].is_rotated and not looked[mask].is_rotated:
            findings.remarks.append(
                ('is turned by its EXIF orientation, and its label map is not', files[0])
            )
        return not findings.faults

    def _contents(self, data: Mapping[str, Any], name: str, findings: SampleFindings) -> None:
        image = data.get('img')
        if isinstance(image, np.ndarray):
            findings.size = (image.shape[0], image.shape[1])
            shape = data.get('ori_shape')
            if shape is not None:
                findings.size = (int(shape[0]), int(shape[1]))
        if 'gt_seg_map' in data:
            mask = str(data.get('seg_map_path') or name)
            trouble = mask_fault(data)
            if trouble:
                findings.faults.append(Fault(mask, trouble))
                return
            self._ids(data['gt_seg_map'], mask, findings)
        elif 'gt_label' in data:
            findings.labels = np.atleast_1d(np.asarray(data['gt_label'])).ravel().tolist()
            self._judge_ids(findings.labels, name, findings)

    def _ids(self, labels: np.ndarray, name: str, findings: SampleFindings) -> None:
        if labels.dtype.kind not in 'iub':
            return  # a map of measurements
        ids, counts = np.unique(labels, return_counts=True)
        findings.pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        self._judge_ids(ids.tolist(), name, findings)

    def _judge_ids(self, ids: Sequence[Any], name: str, findings: SampleFindings) -> None:
        whole = [i for i in ids if isinstance(i, int)]
        if self.rule is not None and (trouble := wrong_ids(whole, self.rule)):
            findings.faults.append(Fault(name, trouble))

    def _whole(self, index: int, findings: SampleFindings) -> None:
        """A data set of another kind: all that can be told is whether a sample comes of it."""
        try:
            sample = self.dataset[index]
        except Exception as error:  # whatever the data set makes of it
            findings.faults.append(Fault(f'sample {index}', f'cannot be read: {reason(error)}'))
            return
        ids = packed_ids(sample)
        findings.labels = ids
        self._judge_ids(ids, f'sample {index}', findings)


class _Noted:
    """A step that notes its name before it runs."""

    def __init__(self, step: Any, running: list[str]) -> None:
        self.step, self.running = step, running

    def __call__(self, data: Any) -> Any:
        self.running.append(step_name(self.step))
        return self.step(data)


def _same_data(named: Sequence[ConfiguredDataset]) -> list[list[ConfiguredDataset]]:
    """Places grouped by what they read: validation and test are often the same."""
    groups: dict[str, list[ConfiguredDataset]] = {}
    for configured in named:
        groups.setdefault(
            repr(sorted(configured.config.items(), key=lambda item: item[0])), []
        ).append(configured)
    return list(groups.values())


def _built(group: Sequence[ConfiguredDataset]) -> tuple[DatasetReport, ConfiguredDataset, Any]:
    """A data set with an empty report; without the data set where it cannot be built."""
    splits = ', '.join(dict.fromkeys(configured.split for configured in group))
    report = DatasetReport(splits, group[0].where)
    try:
        dataset = build(group[0])
    except CDRAError as error:
        report.faults.append(Fault(report.where, f'cannot be used: {error}'))
        return report, group[0], None
    report.samples = len(dataset)
    meta = getattr(dataset, 'metainfo', None) or {}
    report.classes = tuple(map(str, meta.get('classes') or ()))
    return report, group[0], dataset


def _checked_samples(dataset: Any, rule: LabelRule | None, workers: int, where: str) -> Any:
    loader: DataLoader[SampleFindings] = DataLoader(
        SampleChecks(dataset, rule), batch_size=None, num_workers=workers, collate_fn=None
    )
    try:
        yield from loader
    except RuntimeError as error:  # what becomes of a worker that was killed
        raise DataError(
            f'{where}: a process that reads the files ended ({reason(error)}): out of memory, or a '
            'decoder crashed; set fewer workers'
        ) from error


def _add(report: DatasetReport, findings: SampleFindings) -> None:
    if findings.size is not None:
        report.sizes[findings.size] += 1
    for number, pixels in findings.pixels.items():
        report.tally.images[number] += 1
        report.tally.pixels[number] += pixels
    for label in findings.labels:
        report.tally.images[label] += 1
    report.faults += findings.faults
    for kind, path in findings.remarks:
        report.remarks.setdefault(kind, []).append(path)


def _judge(report: DatasetReport, dataset: Any, rule: LabelRule | None) -> None:
    """What only all samples together tell."""
    if rule is not None:
        report.mistakes += likely_mistakes(
            report.tally.pixels or report.tally.images,
            rule,
            what=report.split,
            names=report.classes,
            reduces_zero=bool(getattr(dataset, 'reduce_zero_label', False)),
        )
    if not is_local(dataset):
        return
    infos = infos_of(dataset)
    known = {fault.where: n for n, fault in enumerate(report.faults)}
    for fault in absent_files(dataset, infos, None)[:1]:  # the first says why
        if fault.where in known:
            report.faults[known[fault.where]] = fault
    lonely = unpaired_masks(dataset, infos)
    if lonely:
        report.remarks['has no image'] = lonely
    for name, other in folders_read_twice(infos):
        report.mistakes.append(f'{name} is the same folder as {other}: its images are read twice')


def _compare_classes(reports: Sequence[DatasetReport]) -> None:
    """Class names that differ between the splits: the same id means different things."""
    named = [report for report in reports if report.classes]
    for report in named[1:]:
        if list(report.classes) != list(named[0].classes):
            differ = sorted(set(report.classes) ^ set(named[0].classes)) or ['their order']
            report.mistakes.append(
                f'{report.where} has other classes than {named[0].where} '
                f'({", ".join(differ[:5])}), so the same id means another class: give both the '
                'same folders, or metainfo.classes'
            )
