"""Grids: what a file may say, what may be asked of it, and those that are shipped."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.registry import TRANSFORMS, init_default_scope

from cdra_mm.core import ConfigError
from cdra_mm.methods import make_method
from cdra_mm.mm.hook import CDRAHook
from cdra_mm.mm.launch import load_config
from cdra_mm.tables.grid import narrow
from cdra_mm.tables.grid_file import find_grid, read_grid
from cdra_mm.tables.jobs import Commands, choose, final_jobs, option_text, search_jobs
from cdra_mm.tables.small_file import is_small_study, read_small_study

from .project import GRID, REPOSITORY

FOLDER = REPOSITORY / 'configs/tables'
SHIPPED = sorted(path.stem for path in FOLDER.glob('*.py') if not is_small_study(path))
# Rows of the papers' tables, and of later methods.
ROWS = {
    'full', 'mlp', 'vpt_shallow', 'vpt_deep', 'adapter', 'noah', 'linear', 'partial', 'bias',
    'lora', 'rlrr', 'apla', 'soma', 'dora', 'mona', 'gps',
    'spt_adapter', 'spt_lora_8', 'spt_lora_16', 'cdra', 'cdra_eq7',
}  # fmt: skip


@pytest.fixture
def grid(project):
    return read_grid(project.folder / 'configs/tables/toy.py')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('seeds = [0, 1]', "seeds = [0, 'one']"), "seed 'one': expected an integer"),
        (('seeds = [0, 1]', 'seeds = [-1]'), 'seed -1: expected at least 0'),
        (("title = 'Toy'", "titel = 'Toy'"), r"'titel' \(did you mean 'title'\?\)"),
        (("report='test'", "report='tests'"), "report='tests', expected one of final_run"),
        ((", report='test'", ''), "task 'cars' of the grid has no entry 'report'"),
        (("metrics = dict(top1='top-1')", ''), "has no entry 'metrics'"),
        (("title='Full', ", "titel='Full', "), "method 'full' of the grid has an entry 'titel'"),
        (('methods = dict(', 'methods = dict('), None),
    ],
)
def test_grid_file_is_checked(project, change, message):
    path = project.write_grid(GRID.replace(*change))
    if message is None:
        assert read_grid(path).seeds == (0, 1)
        return
    with pytest.raises(ConfigError, match=message):
        read_grid(path)


@pytest.mark.parametrize('text', ['methods = dict(', "raise ValueError('no')"])
def test_grid_file_that_is_no_config_is_one_error(project, text):
    path = project.write_grid(text)
    with pytest.raises(ConfigError, match=f'grid {path}: '):
        read_grid(path)


def test_grid_of_nothing_is_refused(project, grid):
    text = "metrics = dict(a='a')\nmethods = dict()\ntasks = dict()\n"
    with pytest.raises(ConfigError, match='is empty'):
        read_grid(project.write_grid(text))
    for nothing in ({'methods': []}, {'tasks': []}, {'seeds': []}):
        with pytest.raises(ConfigError, match='nothing is left of grid toy'):
            narrow(grid, **nothing)


@pytest.mark.parametrize(
    ('choice', 'message'),
    [
        ({'methods': ['cdar']}, r"method 'cdar' is not in the grid \(did you mean 'cdra'\?\)"),
        ({'tasks': ['cat']}, r"task 'cat' is not in the grid \(did you mean 'cats'\?\)"),
        ({'seeds': ['1.5']}, "seed '1.5': expected an integer"),
    ],
)
def test_grid_unknown_names_are_refused_with_the_nearest(grid, choice, message):
    with pytest.raises(ConfigError, match=message):
        narrow(grid, **choice)


def test_grid_narrows_in_its_own_order(grid):
    part = narrow(grid, methods=['cdra', 'full'], tasks=['cars', 'cats'], seeds=['3', '3'])
    assert [row.name for row in part.rows] == ['full', 'cdra']
    assert [task.name for task in part.tasks] == ['cats', 'cars']
    assert part.seeds == (3,)


def test_grid_checks_methods_and_configs_before_anything_runs(project, grid):
    wrong = [replace(row, method={'type': 'cdra', 'gama': 0.1}) for row in grid.rows[-1:]]
    with pytest.raises(ConfigError, match=r"row cdra: method 'cdra' has no setting 'gama' \(did"):
        narrow(replace(grid, rows=tuple(wrong)))
    (project.folder / 'configs/toy/cars.py').rename(project.folder / 'configs/toy/cars_2.py')
    with pytest.raises(ConfigError, match=r"cars.py does not exist \(did you mean 'cars_2.py'\?\)"):
        narrow(grid)
    assert narrow(grid, tasks=['cats']).tasks


def test_grid_does_not_choose_by_the_images_it_reports(project):
    text = GRID.replace("report='test'", "report='validation'")
    path = project.write_grid(text + "search = {'optimizer.lr': [1, 2]}\n")
    with pytest.raises(ConfigError, match='would choose its settings by the same images'):
        narrow(read_grid(path))
    assert narrow(read_grid(path), search=False).tasks
    assert narrow(read_grid(path), tasks=['cats']).tasks


def test_grid_one_value_is_set_and_not_searched_for(project, tmp_path):
    path = project.write_grid(GRID + "search = {'a': [1], 'b': [1, 2]}\n")
    grid = narrow(read_grid(path), tasks=['cats'], methods=['cdra'])
    jobs = search_jobs(grid, tmp_path)
    assert [(job.options['a'], job.options['b']) for job in jobs] == [(1, 1), (1, 2)]
    without = narrow(grid, search=False)
    (job, _) = final_jobs(without, without.rows[0], without.tasks[0], {}, tmp_path)
    assert job.options['a'] == 1 and 'b' not in job.options


def test_grid_settings_may_be_chosen_by_the_mean_of_two_seeds(project, tmp_path):
    text = GRID + "search = {'a': [1, 2]}\nsearch_seeds = 2\n"
    grid = narrow(read_grid(project.write_grid(text)), tasks=['cats'], methods=['cdra'])
    jobs = search_jobs(grid, tmp_path)
    assert [(job.chosen['a'], job.seed) for job in jobs] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len({job.folder for job in jobs}) == 4
    metric = next(iter(grid.tasks[0].metrics))
    figures = [{metric: value} for value in (50, 50, 60, 30)]
    assert choose(list(zip(jobs, figures, strict=True))) == ({'a': 1}, 50)
    assert choose(list(zip(jobs, figures, strict=True))[::2]) == ({'a': 2}, 60)
    assert [job.seed for job in search_jobs(narrow(grid, search_seeds=1), tmp_path)] == [0, 0]
    with pytest.raises(ConfigError, match=r'search_seeds=2: expected .* 1 to 1 \(seeds: 1\)'):
        narrow(grid, seeds=['1'])


def test_jobs_say_everything_that_a_run_depends_on(grid, tmp_path):
    part = narrow(grid, overrides={'train_cfg.max_epochs': 5})
    jobs = [
        job
        for row in part.rows
        for task in part.tasks
        for job in final_jobs(part, row, task, {}, tmp_path)
    ]
    assert len({job.folder for job in jobs}) == len(jobs) == 3 * 3 * 2
    job = jobs[-1]
    assert job.options == {
        'default_hooks.cdra.type': 'cdra_mm.CDRAHook',
        'default_hooks.cdra.method.type': 'cdra',
        'default_hooks.cdra.method.budget_percent': 0.5,
        'train_cfg.max_epochs': 5,
        'randomness.seed': 1,
        'default_hooks.cdra.seed': 1,
    }


def test_task_may_need_a_method_with_other_settings(project, tmp_path):
    text = GRID.replace("report='test'", "report='test', methods=dict(cdra=dict(rank_rule=8))")
    grid = read_grid(project.write_grid(text))
    row = grid.rows[-1]
    jobs = [final_jobs(grid, row, task, {}, tmp_path)[0] for task in grid.tasks]
    key = 'default_hooks.cdra.method.rank_rule'
    assert [job.options.get(key) for job in jobs] == [None, None, 8]
    with pytest.raises(ConfigError, match=r"method 'crda', which is not in the grid \(did you"):
        read_grid(project.write_grid(text.replace('methods=dict(cdra', 'methods=dict(crda')))
    wrong = read_grid(project.write_grid(text.replace('rank_rule=8', 'rank_role=8')))
    with pytest.raises(ConfigError, match="row cdra: method 'cdra' has no setting 'rank_role'"):
        narrow(wrong)
    assert narrow(wrong, tasks=['cats']).tasks


@pytest.mark.parametrize(
    'value',
    [
        *(0.003, 1e-05, 7, True, None, 'word', [224, 224], [0.9, 0.999], ['q', 'v'], [[1, 2], [3]]),
        *((112, 112), (7,), ('q', 0.5), [(1, 2), [3]], ((1, 2), [3])),
    ],
)
def test_option_text_is_read_as_the_value_it_was(value, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('a = dict(b=0)\n')
    assert load_config(config, [f'a.b={option_text(value)}']).a.b == value


def test_shipped_grids_are_the_ones_known_here():
    assert SHIPPED == ['dense', 'fgvc', 'six_tasks', 'vtab']
    sizes = {name: len(read_grid(FOLDER / f'{name}.py').tasks) for name in SHIPPED}
    assert sizes == {'dense': 2, 'fgvc': 5, 'six_tasks': 6, 'vtab': 19}


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_grid_has_every_row_and_its_command(name):
    path = FOLDER / f'{name}.py'
    docstring = path.read_text(encoding='utf-8').split('"""')[1]
    assert f'python tools/tables.py {name}' in docstring
    for word in ('Data:', 'Result:', 'earch:'):
        assert word in docstring
    names = {row.name for row in read_grid(path).rows}
    # The study has rows of other sizes beside them.
    assert {name for name in names if not name.endswith('_own')} == ROWS
    assert name == 'six_tasks' or names == ROWS


def test_the_shipped_study_in_memory_has_every_row_of_a_size_that_it_can_have():
    study = read_small_study(FOLDER / 'study_cpu.py')
    names = {row.name for row in study.grid.rows}
    # The package's default is there as cdra_brief.
    assert ROWS - names == {'cdra'}
    own = {name for name in names if name.endswith('_own')}
    assert (
        names - ROWS
        == {'cdra_brief', 'cdra_count', 'cdra_descent', 'cdra_energy', 'dora_qkv'} | own
    )
    assert {'lora_own', 'vpt_deep_own'} < own
    compared = read_small_study(FOLDER / 'compare_peft.py')
    assert study.recipes['dora_qkv'] == compared.recipes['dora']
    parts = read_small_study(FOLDER / 'parts_cpu.py')
    fitted = replace(parts.recipes['dora_qkv_fitted'], head_iterations=0)
    assert fitted == study.recipes['dora_qkv']
    for row in (*study.grid.rows, *parts.grid.rows):
        if row.method:  # the others are of peft
            make_method(row.method)
    assert set(parts.rates) < set(study.rates)
    # Every task is there with the head as it is drawn, fitted first, and fitted briefly first.
    forms = ('_fitted', '_brief')
    drawn = {name: task for name, task in study.tasks.items() if not name.endswith(forms)}
    assert parts.grid.tasks == compared.grid.tasks == study.grid.tasks[: len(drawn)]
    for name, task in drawn.items():
        assert study.recipe('lora', name).head_iterations == 0
        assert study.recipe('lora', f'{name}_fitted').head_iterations == 100
        for form, steps in zip(forms, (100, 10), strict=True):
            first = study.tasks[name + form]
            assert {**first, 'title': task['title']} == {**task, 'head_iterations': steps}
        assert study.recipe('cdra_brief', name) == study.recipe('cdra_descent', f'{name}_brief')
    assert parts.recipes['energy_start_whole'].rules.sides == (1.0,)


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_grid_gives_every_row_the_same_effort(name):
    grid = read_grid(FOLDER / f'{name}.py')
    trials = {len(search_jobs(narrow_to(grid, row), Path('out'))) for row in grid.rows}
    assert trials == ({0} if name == 'dense' else {3})


def method_of(grid, row, task):
    """The settings of a row's method on a task, as its job has them."""
    (row,) = (r for r in grid.rows if r.name == row)
    (task,) = (t for t in grid.tasks if t.name == task)
    options = final_jobs(grid, row, task, {}, Path('out'))[0].options
    start = 'default_hooks.cdra.method.'
    return {key.removeprefix(start): v for key, v in options.items() if key.startswith(start)}


def test_rows_of_the_papers_tables_are_those_of_their_authors():
    """What their public code and released files say; docs/methods.md has the rest."""
    vtab, fgvc = (read_grid(FOLDER / f'{name}.py') for name in ('vtab', 'fgvc'))
    camelyon = {t.name: method_of(vtab, 'gps', t.name).get('k', 1) for t in vtab.tasks}
    assert {name for name, k in camelyon.items() if k != 1} == {'patch_camelyon'}
    assert camelyon['patch_camelyon'] == 2
    sets = {t.name: method_of(fgvc, 'gps', t.name).get('k', 1) for t in fgvc.tasks}
    assert sets == dict(cub=2, nabirds=20, oxford_flowers=1, stanford_cars=15, stanford_dogs=1)
    assert method_of(fgvc, 'lora', 'cub')['rank'] == 16
    for grid in (vtab, fgvc):
        noah = method_of(grid, 'noah', grid.tasks[0].name)
        dims = [noah[f'{kind}_dims'] for kind in ('prompt', 'lora', 'adapter')]
        assert dims == [[1, 5, 10]] * 3
        letter = method_of(grid, 'cdra_eq7', grid.tasks[0].name)
        assert (letter['rank_rule'], letter['rank_alpha']) == ('eq7', 1)
        assert letter['allocation'] == 'scores'


def narrow_to(grid, row):
    return replace(grid, rows=(row,), tasks=grid.tasks[:1])


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_grid_options_change_what_its_configs_have(name):
    """A setting with a slip in its name would be added to a config and change nothing."""
    grid = read_grid(FOLDER / f'{name}.py')
    for task in grid.tasks:
        cfg = load_config(task.config, final_run=task.report == 'final_run')
        options = {**grid.options, **task.options}
        for row in grid.rows:
            options |= {**row.options, **{key: 0 for key in row.search}}
        for key in options:
            holder = cfg
            for part in key.split('.')[:-1]:
                if part in ('paramwise_cfg', 'custom_keys', 'backbone') and part not in holder:
                    break  # mmengine makes them
                holder = holder[int(part)] if part.isdigit() else holder[part]
            else:
                # Arguments that configs leave at their defaults.
                allowed = [*holder, 'lr_mult', *(['indices'] if 'pipeline' in holder else [])]
                if key.startswith('default_hooks.cdra.'):
                    allowed += inspect.signature(CDRAHook).parameters
                assert key.split('.')[-1] in allowed, key
        for metric in task.metrics:
            evaluator = cfg.val_evaluator
            known = {'Accuracy': ['accuracy/top1'], 'IoUMetric': ['mIoU', 'mDice']}
            assert metric in known[evaluator.type]


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_grid_gives_pipelines_that_can_be_built(name, tmp_path):
    """A size of an image may be a tuple or a list; some transforms take only one of the two."""
    grid = read_grid(FOLDER / f'{name}.py')
    for task in grid.tasks:
        job = final_jobs(grid, grid.rows[0], task, {}, tmp_path)[0]
        words = Commands(REPOSITORY / 'tools', 'python').train(job)
        cfg = load_config(task.config, words[words.index('--cfg-options') + 1 :])
        init_default_scope(cfg.default_scope)
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            for transform in pipelines(loader.dataset):
                TRANSFORMS.build(transform)


def pipelines(dataset):
    """The transforms of a data set, also of those that it wraps."""
    yield from dataset.get('pipeline', ())
    for part in [*dataset.get('datasets', ()), dataset.get('dataset')]:
        yield from pipelines(part) if part else ()


def test_find_grid_by_name_or_path(project, tmp_path):
    folder = project.folder / 'configs/tables'
    assert find_grid('toy', folder) == find_grid(str(folder / 'toy.py'), tmp_path)
    with pytest.raises(ConfigError, match=r"table 'toi' is unknown \(did you mean 'toy'\?\)"):
        find_grid('toi', folder)
    with pytest.raises(ConfigError, match='does not exist'):
        find_grid(str(folder / 'none.py'), folder)
