"""Studies in memory: runs that go on, rates chosen on validation, figures of the test images."""

from __future__ import annotations

import json
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import save_file

from cdra_mm.core import ConfigError
from cdra_mm.tables import small_study
from cdra_mm.tables import study as tables
from cdra_mm.tables.report import make_report
from cdra_mm.tables.small_file import read_small_study
from cdra_mm.tables.small_records import Runs, search, worth
from cdra_mm.tables.small_study import results_of
from cdra_mm.tables.study_options import parser
from tests.benchmark.test_rounding import picture, tiny_vit, vtab  # noqa: F401
from tests.tables.project import REPOSITORY

STUDY = """
title = 'Two rows'
seeds = [0, 1]
weights = 'none'
iterations = 2
head_rate = 1e-2
rates = [1e-3, 1e-2, 1e-1]
methods = dict(
    linear=dict(method=dict(type='linear'), rate=None),
    bias=dict(title='Bias', method=dict(type='bias')),
    gone=dict(),
)
tasks = dict(
    a=dict(metric='top-1', kind='vtab', folder={folder!r}, size=32, batch=4, test=2),
    b=dict(metric='top-1', kind='vtab', folder={folder!r}, size=32, batch=4),
)
"""


@pytest.fixture
def study(tmp_path, vtab):  # noqa: F811
    lines = []
    for i in range(3):
        picture(vtab / f'images/test/{i}.png', i)
        lines.append(f'images/test/{i}.png {i}\n')
    (vtab / 'test.txt').write_text(''.join(lines))
    path = tmp_path / 'study.py'
    path.write_text(STUDY.format(folder=str(vtab)))
    return path


def backbone(_, size):
    torch.manual_seed(7)  # as from one file
    return tiny_vit(size)


def run(study, *words):
    arguments = parser().parse_args([str(study), *map(str, words)])
    small_study.main(arguments, study, backbone)


def read(path):
    """Runs without their seconds."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in r.items() if key != 'seconds'} for r in found]


def test_runs_go_on_where_they_broke_off(study, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    run(study, '--out', out, '--tasks', 'a', '--methods', 'bias')
    found = read(out / 'a.jsonl')
    assert {r['method'] for r in found} == {'bias'} and not (out / 'b.jsonl').exists()
    assert [r['seed'] for r in found][-1] == 1 and [r['seed'] for r in found].count(1) == 1
    lines = (out / 'a.jsonl').read_text().splitlines()
    (out / 'a.jsonl').write_text('\n'.join(lines[1:]) + '\n')
    run(study, '--out', out)
    again = read(out / 'a.jsonl')
    # The lost one gets the same figures to the last digit, whatever ran before it; others stay.
    assert again[: len(found) - 1] == found[1:] and found[0] in again
    assert sorted({(r['method'], r['seed']) for r in read(out / 'b.jsonl')}) == [
        ('bias', 0), ('bias', 1), ('linear', 0), ('linear', 1),
    ]  # fmt: skip
    assert 'Bias' in (out / 'report.md').read_text() and 'Bias' in (out / 'table.md').read_text()
    monkeypatch.setattr(small_study, 'Setting', None)
    run(study, '--out', out, '--report')
    assert read(out / 'a.jsonl') == again


def losses(path, row):
    """Of the trainings of a row, by seed and rate."""
    return {(r['seed'], r['rate']): r['train_loss'] for r in read(path) if r['method'] == row}


def test_a_task_may_begin_with_a_fitted_head_for_all_rows_that_say_nothing_else(study, tmp_path):
    out = tmp_path / 'out'
    text = study.read_text()
    own = "bias_own=dict(method=dict(type='bias'), head_iterations=3),"
    text = text.replace('    gone=dict(),', f'    {own}')
    head = 'batch=4, head_iterations=2),'
    assert text.count('batch=4),') == 1
    study.write_text(text.replace('batch=4),', head))
    run(study, '--out', out, '--methods', 'bias', 'bias_own')
    drawn, fitted, own = (
        losses(out / f'{task}.jsonl', row)
        for task, row in (('a', 'bias'), ('b', 'bias'), ('b', 'bias_own'))
    )
    study.write_text(text.replace('head_iterations=3', 'head_iterations=2'))
    run(study, '--out', tmp_path / 'by_row', '--tasks', 'b', '--methods', 'bias', 'bias_own')
    path = tmp_path / 'by_row' / 'b.jsonl'
    # Of the two ways to say it the figures are the same; a head of the row's own goes before.
    assert losses(path, 'bias_own') == fitted and losses(path, 'bias') == drawn
    for other in (own, drawn):
        assert (0, 1e-2) in other
        assert all(other[key] != fitted[key] for key in other.keys() & fitted.keys())


def test_what_is_forgotten_is_asked_in_the_size_of_each_task(study, tmp_path):
    width = tiny_vit(32).embed_dim
    head = {'head.weight': torch.randn(9, width), 'head.bias': torch.zeros(9)}
    save_file(head, tmp_path / 'weights.safetensors')
    text = study.read_text().replace("'none'", repr(str(tmp_path / 'weights.safetensors')))
    text = text.replace('size=32, batch=4),', 'size=64, batch=4),')
    folder = read_small_study(study).tasks['a']['folder']
    given = f'remembered = dict(folder={folder!r}, images=2)'
    study.write_text(f'{text}\n{given}\n')
    run(study, '--out', tmp_path / 'out', '--methods', 'linear', '--seeds', 0)
    for task in ('a', 'b'):
        (found,) = read(tmp_path / f'out/{task}.jsonl')
        assert found['kept'] == 100
    study.write_text(f'{text}\n{given[:-1]}, size=32)\n')
    with pytest.raises(ConfigError, match="remembered of the study .* has an entry 'size'"):
        read_small_study(study)


def test_tasks_are_shared_between_processes(study, tmp_path):
    out = tmp_path / 'out'
    run(study, '--out', out, '--jobs', 2, '--methods', 'linear')
    assert {r['task'] for task in ('a', 'b') for r in read(out / f'{task}.jsonl')} == {'a', 'b'}


def test_the_tables_command_takes_a_study(study, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a.jsonl').write_text(line('a', 'bias', 1e-2, 0, 60, 40) + '\n')
    tables.main(parser().parse_args([str(study), '--out', str(out), '--show']), tmp_path)
    assert '40.0' in capsys.readouterr().out
    assert not (out / 'report.md').exists()


def test_a_dry_run_runs_nothing(study, tmp_path, capsys):
    run(study, '--out', tmp_path / 'out', '--dry-run')
    assert capsys.readouterr().out == 'a: linear, bias\nb: linear, bias\n'
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('worths', 'begin', 'done', 'best', 'runs'),
    [
        ([1, 5, 2, 0, 0], 1, [], 1, [1, 0, 2]),
        ([3, 5, 7, 9, 1], 1, [], 3, [1, 0, 2, 3, 4]),
        ([9, 5, 7, 9, 1], 2, [], 3, [2, 1, 3, 4]),
        ([9, 8, 7, 6, 1], 2, [], 0, [2, 1, 0]),
        ([1, 2, 2, 1, 0], 2, [], 2, [2, 1, 3]),
        # What a ladder without the rates between had found is gone on from.
        ([8, 9, 5, 7, 1], 4, [0, 2, 4], 1, [1]),
        ([5, 1, 3, 7, 1], 2, [0, 2, 4], 0, [1]),
        ([1, 2, 1, 0, 0], 4, [0, 1, 2], 1, []),
    ],
)
def test_a_search_ends_when_a_worse_rate_stands_on_each_side(worths, begin, done, best, runs):
    rates = [1.0, 2.0, 3.0, 4.0, 5.0]
    asked = []

    def result(at):
        return {'metric': worths[at], 'val_loss': None}

    def train(rate):
        asked.append(rates.index(rate))
        return [result(asked[-1])]

    known = {rates[at]: [result(at)] for at in done} | {7.0: [result(0)]}
    assert search(rates, rates[begin], train, known if done else {}) == rates[best]
    assert asked == runs


def test_of_equal_metrics_the_lower_validation_loss_is_taken_and_none_is_last():
    losses = {1.0: 0.5, 2.0: None, 3.0: 0.4}
    assert search([*losses], 2.0, lambda r: [{'metric': 1, 'val_loss': losses[r]}]) == 1.0
    assert search([*losses], 3.0, lambda r: [{'metric': 1, 'val_loss': losses[r]}]) == 3.0


def line(task, row, rate, seed, metric, test, **more):
    kept = dict(params=5, backbone=1000, head=7, val_loss=0.1, test=test)
    return json.dumps(
        dict(task=task, method=row, rate=rate, seed=seed, metric=metric, **kept, **more)
    )


def test_figures_are_of_the_test_images_at_the_rate_that_validation_chose(study, tmp_path):
    lines = [
        line('a', 'bias', 1e-3, 0, 50, 99),
        line('a', 'bias', 1e-2, 0, 60, 40),
        line('a', 'bias', 1e-2, 1, 10, 44),
        line('a', 'bias', 1e-3, 1, 90, 99),
        line('a', 'linear', 0.0, 0, 30, 30),
        line('a', 'linear', 0.0, 1, 30, 38),
        line('b', 'bias', 1e-2, 0, 70, None),
        line('b', 'linear', 0.0, 0, 69, None),
    ]
    for task in ('a', 'b'):
        own = [text for text in lines if f'"task": "{task}"' in text]
        (tmp_path / f'{task}.jsonl').write_text('\n'.join(own) + '\n')
    read_study = read_small_study(study)
    results, edges = results_of(read_study, Runs(tmp_path, ['a', 'b']))
    report = make_report(read_study.grid, results, edges, against='linear')
    bias = {entry.row.name: entry for entry in report.rows}['bias']
    assert bias.cells['a'].values == (40, 44) and bias.cells['b'].values == (70,)
    assert bias.share == 0.5
    assert bias.against is not None and bias.against.mean == pytest.approx((10 + 6 + 1) / 3)
    assert [(e.row, e.task, e.value) for e in report.edges] == [('bias', 'a', 1e-2)]


def test_two_seeds_may_choose_a_rate_by_their_mean(study, tmp_path):
    lines = [
        line('a', 'bias', 1e-3, 0, 50, 1),
        line('a', 'bias', 1e-3, 1, 50, 2),
        line('a', 'bias', 1e-2, 0, 60, 3),
        line('a', 'bias', 1e-2, 1, 30, 4),
        line('a', 'bias', 1e-1, 0, 90, 5),  # the second seed has not run there
        line('a', 'linear', 0.0, 0, 30, 6),
    ]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
    read_study = read_small_study(study).narrow(search_seeds=2)
    results, edges = results_of(read_study, Runs(tmp_path, ['a']))
    assert {key: result.figures['top-1'] for key, result in results.items()} == {
        ('bias', 'a', 0): 1,
        ('bias', 'a', 1): 2,
    }
    assert [(edge.value, edge.tried) for edge in edges] == [(1e-3, (1e-3, 1e-2))]
    of_one, _ = results_of(read_small_study(study), Runs(tmp_path, ['a']))
    assert of_one['bias', 'a', 0].figures == {'top-1': 5} and ('bias', 'a', 1) not in of_one


def test_seeds_that_choose_run_at_every_rate_and_the_others_at_the_best(study, tmp_path):
    out = tmp_path / 'out'
    words = ['--tasks', 'a', '--methods', 'bias', '--out', out, '--seeds', 0, 1, 2]
    run(study, *words)
    of_one = {seed: set() for seed in range(3)}
    for seed, rate in losses(out / 'a.jsonl', 'bias'):
        of_one[seed].add(rate)
    assert len(of_one[0]) >= 2 and of_one[1] == of_one[2] and len(of_one[2]) == 1
    run(study, *words, '--search-seeds', 2)
    rates = {seed: set() for seed in range(3)}
    for seed, rate in losses(out / 'a.jsonl', 'bias'):
        rates[seed].add(rate)
    assert rates[0] >= of_one[0] and rates[1] >= of_one[1]
    both = rates[0] & rates[1]
    runs = Runs(out, ['a']).of_all('a', 'bias', [0, 1])
    best = max(runs, key=lambda rate: worth(runs[rate]))
    assert set(runs) == both and len(both) >= 2 and rates[2] == of_one[2] | {best}
    # What a whole file says is taken where the command says nothing.
    study.write_text(study.read_text() + 'search_seeds = 2\n')
    before = (out / 'a.jsonl').read_text()
    run(study, *words)
    assert (out / 'a.jsonl').read_text() == before


def test_a_loss_that_is_no_number_is_written_as_null(tmp_path):
    runs = Runs(tmp_path, ['a'])
    runs.add(dict(task='a', method='b', seed=0, rate=1.0, metric=1.0, val_loss=float('nan')))
    assert json.loads((tmp_path / 'a.jsonl').read_text())['val_loss'] is None
    assert Runs(tmp_path, ['a']).found == runs.found


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('rates = [1e-3, 1e-2', 'rates = [1e-2, 1e-3', 'expected rising numbers above 0'),
        ('rate=None', 'rate=5e-3', "method 'linear' .* rate=0.005: expected one of rates"),
        ("kind='vtab'", "kind='vtap'", "'vtap'.*did you mean 'vtab'"),
        ('batch=4, test=2', 'test=2', "task 'a' .* has no entry 'batch'"),
        (
            "method=dict(type='bias')",
            'rate=1e-2',
            "method 'bias' .* expected one of method and peft",
        ),
        ("title='Bias'", "titel='Bias'", "an entry 'titel'.*did you mean 'title'"),
        ("weights = 'none'", '', "has no entry 'weights'"),
        (
            'batch=4, test=2',
            'batch=4, head_iterations=-1',
            "task 'a'.*head_iterations=-1: expected",
        ),
        ('seeds = [0, 1]', "seeds = [0]; search_seeds = 'all'", "search_seeds='all': expected how"),
        ("title='Bias'", 'head_iterations=-1', "method 'bias'.*head_iterations=-1: expected"),
    ],
)
def test_a_wrong_file_is_refused(study, tmp_path, old, new, message):
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        run(study, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--methods', 'bais'], "'bais'.*did you mean 'bias'"),
        (['--tasks', 'c'], "'c' is not in the grid"),
        (['--against', 'nobody'], "'nobody'"),
        (['--seeds', 'one'], "seed 'one'"),
        (['--search-seeds', '0'], r'search_seeds=0: expected .* 1 to 2 \(seeds: 0, 1\)'),
        (['--search-seeds', '2', '--seeds', '5'], r'search_seeds=2: .* 1 to 1 \(seeds: 5\)'),
        (['--jobs', '0'], '--jobs 0: expected at least 1'),
        (['--devices', '7'], '--devices 7: PyTorch sees'),
        (['--cfg-options', 'a=1'], '--cfg-options has no meaning for study.py'),
        (['--no-search'], '--no-search has no meaning for study.py'),
    ],
)
def test_wrong_words_are_refused(study, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run(study, '--out', tmp_path / 'out', *words)
    assert not (tmp_path / 'out').exists()


OTHER_TASK = line('b', 'bias', 1e-3, 0, 50, 99)


@pytest.mark.parametrize('text', ['{"task": "a"', '{"task": "a"}', '[1]', '', OTHER_TASK])
def test_a_damaged_line_is_named(study, tmp_path, text):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a.jsonl').write_text(line('a', 'bias', 1e-3, 0, 50, 99) + f'\n{text}\n')
    with pytest.raises(ConfigError, match='a.jsonl:2 is no line of a run of a'):
        run(study, '--out', out)


def test_validation_figures_are_shown_beside_the_test_figures(study, tmp_path, capsys):
    out = tmp_path / 'out'
    run(study, '--out', out)
    runs = Runs(out, ['a', 'b'])
    written = {path: path.read_text() for path in out.iterdir() if path.suffix in ('.md', '.json')}
    capsys.readouterr()
    run(study, '--out', out, '--show', '--on', 'validation', '--seeds', 0, '--format', 'csv')
    shown = capsys.readouterr().out
    results, _ = results_of(read_small_study(study), runs)
    best = max(r['metric'] for r in runs.of('a', 'bias', 0).values())
    assert f',Bias,{best:g},' in shown and results['bias', 'a', 0].figures['top-1'] != best
    assert {path: path.read_text() for path in written} == written


def test_a_grid_has_no_validation_figures_to_choose(tmp_path):
    with pytest.raises(ConfigError, match='--on validation: only for studies in memory'):
        words = ['six_tasks', '--on', 'validation', '--out', str(tmp_path / 'out')]
        tables.main(parser().parse_args(words), REPOSITORY / 'tools')


def test_tasks_run_side_by_side_each_in_its_place(study, tmp_path, monkeypatch):
    """On GPUs one process each; here they are told from the CPU by the device that they are for."""
    asked = []

    class Pool:
        def __init__(self, count, context, take, given):
            places, threads = given
            asked.append((count, [places.get() for _ in range(count)], threads))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, call, tasks):
            asked.append((call.keywords['device'], list(tasks)))
            return []

    monkeypatch.setattr(small_study, 'ProcessPoolExecutor', Pool)
    run(study, '--out', tmp_path / 'out', '--devices', 'cpu', '--jobs', 2)
    assert asked[0][0] == 2 and {place['CUDA_VISIBLE_DEVICES'] for place in asked[0][1]} == {''}
    assert asked[1] == ('cpu', ['a', 'b'])
    asked.clear()
    monkeypatch.setattr('cdra_mm.tables.slots.visible_gpus', lambda: ['0', '3'])
    run(study, '--out', tmp_path / 'out', '--jobs', 1)
    assert [place['CUDA_VISIBLE_DEVICES'] for place in asked[0][1]] == ['0', '3']
    assert asked[1] == ('cuda', ['a', 'b'])


def test_a_process_takes_the_gpu_of_its_place(monkeypatch):
    """By its index: the environment is read once, when what is imported asks for GPUs."""
    taken = []
    monkeypatch.setattr(torch.cuda, 'set_device', taken.append)
    monkeypatch.setattr(torch, 'set_num_threads', lambda threads: None)
    monkeypatch.setattr(small_study, 'visible_gpus', lambda: ['2', '5'])
    places = SimpleQueue()
    for name in ('5', ''):
        places.put({'CUDA_VISIBLE_DEVICES': name})
        small_study._take_place(places, 1)
    assert taken == [1]
