"""The report of every kind of input: one file, no outside, and what cannot be shown is said."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser

import pytest
import torch

from cdra_mm.analysis import picture
from cdra_mm.analysis.full_report import analyze
from cdra_mm.analysis.html_report import REPORT
from cdra_mm.analysis.run_log import join_logs
from cdra_mm.core import CDRAError
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.launch import load_config
from tests.mm import toy

from .problems import write_run


def run_analyze(*paths, out, **options):
    given = dict(matrix=None, format=['png'], no_predictions=True, max_images=4, images=[])
    given |= options
    return analyze(
        argparse.Namespace(runs=[str(path) for path in paths], out=str(out), config=None, **given)
    )


class Page(HTMLParser):
    """Everything that a page asks a browser to load or follow, and its text."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.ids, self.words, self.pictures = [], set(), [], 0
        self.source = path.read_text()
        self.feed(self.source)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base')
        for key, value in attributes:
            if key in ('src', 'href', 'srcset', 'data', 'action', 'poster', 'xlink:href'):
                self.addresses.append(value)
            self.ids |= {value} if key == 'id' else set()
        self.pictures += tag == 'img'

    def handle_data(self, data):
        self.words.append(data)


def assert_self_contained(page):
    for address in page.addresses:
        assert address.startswith('data:') or address[0] == '#' and address[1:] in page.ids, address
    # Also not from the style sheet.
    assert not re.search(r'https?://|file:|url\(|@import', page.source)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished run of two checkpoints with kept masks."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = toy.config(folder, cdra=dict(rank_rule='count', keep_scores='masks'))
    cfg.train_cfg.val_interval = 4
    cfg.default_hooks.logger.interval = 2
    toy.train(cfg)
    return folder / 'run'


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are made, and not drawn, which takes most of a report's time."""
    pixel = b64decode(
        'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsVdVyAAAAABJRU5ErkJggg=='
    )
    monkeypatch.setattr(picture, 'render', lambda figure, form: pixel)


def test_report_of_a_finished_run_tells_all(trained, tmp_path):
    page = Page(run_analyze(trained, out=tmp_path / 'out', format=['png', 'svg']))
    assert_self_contained(page)
    summary = json.loads((trained / 'summary.json').read_text())
    assert f'{summary["trainable_backbone"]:,} of {summary["backbone_parameters"]:,}' in page.text
    assert f'mIoU {summary["metrics"]["mIoU"]:.4g}' in page.text
    names = {path.stem for path in (tmp_path / 'out').glob('*.csv')}
    wanted = {'reorganised_matrix', 'density', 'blocks', 'block_sizes', 'map_ranks', 'spectrum'}
    assert wanted | {'map_parameters', 'map_sensitivity', 'map_change'} <= names
    for form in ('png', 'svg'):
        assert {path.stem for path in (tmp_path / 'out').glob(f'*.{form}')} == names
    assert page.pictures == len(names)
    assert 'relative to the base weights:' not in page.text


@pytest.mark.usefixtures('undrawn')
def test_report_of_a_base_that_is_gone_shows_the_plain_change(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / 'run')
    base = trained.parent / 'base.pth'
    base.rename(base.with_suffix('.away'))
    try:
        page = Page(run_analyze(moved, out=tmp_path / 'out'))
    finally:
        base.with_suffix('.away').rename(base)
    assert 'Changes are shown as they are, not relative to the base weights' in page.text
    assert (tmp_path / 'out' / 'map_change.csv').is_file()


@pytest.mark.usefixtures('undrawn')
def test_report_of_an_interrupted_run_says_so(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / 'run')
    for name in ('summary.json', 'last_checkpoint', 'cdra_adapter.safetensors', 'iter_8.pth'):
        (run / name).unlink()
    (run / 'cdra_scores.safetensors').unlink()
    page = Page(run_analyze(run, out=tmp_path / 'out'))
    assert_self_contained(page)
    assert 'The run has not ended' in page.text
    assert "keep_scores='masks'" in page.text
    assert (tmp_path / 'out' / 'spectrum.csv').is_file()  # of iter_4.pth


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize(
    ('file', 'said'),
    [
        ('cdra_plan.json', 'A plan alone was named'),
        ('cdra_adapter.safetensors', 'An adapter file alone was named'),
        ('iter_8.pth', 'A checkpoint alone was named'),
    ],
)
def test_report_of_a_single_file_says_what_it_is(file, said, trained, tmp_path):
    page = Page(run_analyze(trained / file, out=tmp_path / 'out'))
    assert_self_contained(page)
    assert said in page.text
    plan = json.loads((trained / 'cdra_plan.json').read_text())
    sizes = (tmp_path / 'out' / 'block_sizes.csv').read_text().splitlines()[1:]
    assert len(sizes) == len(plan['blocks']) + len(plan['dropped'])
    learnt = file != 'cdra_plan.json'
    assert (tmp_path / 'out' / 'spectrum.csv').is_file() == learnt


@pytest.mark.usefixtures('undrawn')
def test_report_of_a_merged_checkpoint_names_its_origin(trained, tmp_path):
    cfg = load_config(str(next(trained.glob('*.py'))), [])
    merged = merge_checkpoint(cfg, str(trained / 'iter_8.pth'))
    torch.save(merged.checkpoint, tmp_path / 'merged.pth')
    page = Page(run_analyze(tmp_path / 'merged.pth', out=tmp_path / 'out'))
    assert_self_contained(page)
    assert 'The checkpoint is merged' in page.text and 'iter_8.pth' in page.text
    assert 'The method is cdra' in page.text


@pytest.mark.usefixtures('undrawn')
def test_report_escapes_what_comes_from_files(tmp_path):
    name = '<b>run&"1'
    summary = {'method': '<script>alert(1)</script>', 'metrics': {'<i>"x': 1.0}}
    write_run(tmp_path / name, summary=summary)
    page = Page(run_analyze(tmp_path / name, out=tmp_path / 'out'))
    assert_self_contained(page)
    assert name in page.text and '<i>"x 1' in page.text


@pytest.mark.usefixtures('undrawn')
def test_report_of_several_runs_has_one_line_each(tmp_path):
    for i, folder in enumerate(('x/run', 'y/run', 'y/other')):
        write_run(tmp_path / folder, seed=i, summary={'metrics': {'mIoU': 10.0 + i}})
    runs = [tmp_path / folder for folder in ('x/run', 'y/run', 'y/other')]
    page = Page(run_analyze(*runs, out=tmp_path / 'out'))
    assert_self_contained(page)
    assert all(f'{name} The method is cdra' in page.text for name in ('x/run', 'y/run', 'other'))
    assert page.pictures == 4


def test_report_replaces_its_own_and_no_other_folder(tmp_path):
    write_run(tmp_path / 'run')
    out = tmp_path / 'out'
    first = run_analyze(tmp_path / 'run', out=out).read_text()
    assert run_analyze(tmp_path / 'run', out=out).read_text() == first
    with pytest.raises(CDRAError, match='holds other files'):
        run_analyze(tmp_path / 'run', out=tmp_path / 'run')
    assert not (tmp_path / 'run' / REPORT).exists()


WRONG = {
    'nothing': ('no_such_run', 'does not exist'),
    'a folder of something else': ('empty', 'is no work directory'),
    'a text': ('notes.txt', 'is of no kind that is known'),
    'a broken plan': ('broken.json', 'broken.json: the plan is not JSON'),
    'a foreign adapter': ('foreign.safetensors', 'truncated or no safetensors'),
    'a cut checkpoint': ('cut.pth', 'cut.pth'),
    'a plain checkpoint': ('plain.pth', 'was not written by a run with CDRAHook'),
}


@pytest.mark.parametrize('case', WRONG)
def test_report_of_a_wrong_input_is_one_clear_error(case, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('notes.txt', 'broken.json', 'foreign.safetensors', 'cut.pth'):
        (tmp_path / name).write_text('no')
    torch.save({'state_dict': {'backbone.x': torch.zeros(1)}, 'meta': {}}, tmp_path / 'plain.pth')
    name, message = WRONG[case]
    with pytest.raises(CDRAError, match=re.escape(message)) as caught:
        run_analyze(tmp_path / name, out=tmp_path / 'out')
    assert name in str(caught.value) and not (tmp_path / 'out').exists()


def test_report_of_factors_that_are_not_those_of_the_plan_is_one_clear_error(trained, tmp_path):
    path = tmp_path / 'iter_8.pth'
    checkpoint = torch.load(trained / 'iter_8.pth', weights_only=False)
    key = next(key for key in checkpoint['state_dict'] if key.endswith('.down'))
    whole = checkpoint['state_dict'][key]
    for wrong in (torch.zeros(2, 2), torch.full_like(whole, float('nan'))):
        checkpoint['state_dict'][key] = wrong
        torch.save(checkpoint, path)
        with pytest.raises(CDRAError, match=r'iter_8.pth: .*\.down is .* finite numbers'):
            run_analyze(path, out=tmp_path / 'out')
        assert not (tmp_path / 'out').exists()


def test_report_command_ends_wrong_input_with_one_line(repository, tmp_path):
    command = [sys.executable, 'tools/analyze.py', str(tmp_path / 'none'), '--out', 'x']
    result = subprocess.run(
        command,
        cwd=repository,
        env={**os.environ, 'PYTHONPATH': str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


def test_log_of_a_resumed_run_counts_no_step_twice():
    def log(*steps):
        return [{'lr': 0.1, 'step': step, 'start': i} for i, step in enumerate(steps)]

    first, second = log(1, 2, 3), log(3, 4)
    tested = [{'mIoU': 1.0, 'step': 0}]
    joined = join_logs([first, tested, second])
    assert [entry['step'] for entry in joined] == [1, 2, 3, 4]
    assert joined[2] is second[0]
