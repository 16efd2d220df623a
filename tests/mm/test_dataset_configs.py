"""The data sets of a loader are found inside every wrapper, under the setting they stand in."""

from __future__ import annotations

from cdra_mm.mm.dataset_configs import dataset_configs, is_wrapper

PLAIN = {'type': 'ADE20KDataset', 'data_root': 'data'}
REPEATED = {'type': 'RepeatDataset', 'times': 3, 'dataset': PLAIN}
JOINED = {'type': 'ConcatDataset', 'datasets': [PLAIN, REPEATED], 'dataset': None}


def test_wrappers_come_before_what_they_hold():
    loader = {'batch_size': 2, 'dataset': JOINED}
    assert [(where, config) for where, config in dataset_configs(loader, 'train_dataloader')] == [
        ('train_dataloader', loader),
        ('train_dataloader.dataset', JOINED),
        ('train_dataloader.dataset.datasets.0', PLAIN),
        ('train_dataloader.dataset.datasets.1', REPEATED),
        ('train_dataloader.dataset.datasets.1.dataset', PLAIN),
    ]


def test_a_loader_that_is_not_there_has_none():
    assert list(dataset_configs(None, 'val_dataloader')) == []


def test_wrappers_are_told_from_data_sets():
    assert is_wrapper(JOINED) and is_wrapper(REPEATED)
    assert not is_wrapper(PLAIN) and not is_wrapper({'type': 'A', 'datasets': []})
