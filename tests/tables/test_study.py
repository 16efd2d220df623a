"""A grid is run once, goes on where it stopped, and refuses what is not its own."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from cdra_mm.core import ConfigError

from .project import GRID

ONE = ('--methods', 'cdra', '--tasks', 'cats', '--seeds', '0')
JOB = 'cdra/cats/final,seed0'
SEARCH = "search = {'optimizer.lr': [0.3, 0.1, 0.2]}\n"


def with_option(text: str) -> str:
    """The grid with an option for every run of CDRA."""
    return GRID.replace(
        'budget_percent=0.5)', f"budget_percent=0.5), options={{'fake.do': '{text}'}}"
    )


def test_tables_runs_everything_once_and_writes_the_table(project, capsys):
    project.run('--jobs', '2')
    assert sorted(p.name for p in project.out.glob('table.*')) == [
        'table.csv', 'table.md', 'table.tex', 'table.txt',
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert '[18/18]' in printed and 'Mean of 2 groups' in printed
    for job in ('cdra/cats/final,seed0', 'full/dogs/final,seed1', 'linear/cars/final,seed0'):
        assert len(project.calls(job)) == 1
    project.run()
    again = capsys.readouterr().out
    assert 'started' not in again
    assert again == printed[printed.index('Toy\n') :]
    assert len(project.calls('cdra/cats/final,seed0')) == 1


def test_tables_trains_as_the_task_reports(project):
    project.run('--methods', 'cdra', '--tasks', 'cats', 'cars', '--seeds', '1')
    assert project.calls('cdra/cats/final,seed1') == ['--final']
    assert project.calls('cdra/cars/final,seed1') == ['']
    assert project.summary('cdra/cars/final,seed1')['test_metrics']['top1'] == 73.0
    assert 'test_metrics' not in project.summary('cdra/cats/final,seed1')
    # The test's figure is shown where the task reports one.
    rows = (project.out / 'table.csv').read_text().splitlines()
    assert rows[1].startswith('Cheap,CDRA,72,,1,')
    assert ',73,,1,' in rows[1]


def test_tables_chooses_on_validation_then_trains_once_a_seed(project, capsys):
    project.write_grid(GRID + SEARCH)
    project.run('--methods', 'cdra', '--tasks', 'cats')
    searches = [f'cdra/cats/search,lr={lr},seed0' for lr in (0.3, 0.1, 0.2)]
    assert [project.calls(job) for job in searches] == [[''], [''], ['']]
    assert project.calls(JOB) == project.calls('cdra/cats/final,seed1') == ['--final']
    options = json.loads((project.out / JOB / 'job.json').read_text())['options']
    assert options['optimizer.lr'] == '0.1'
    assert 'chose optimizer.lr=0.1' in capsys.readouterr().out


def test_tables_no_search_takes_the_configs_own_settings(project):
    project.write_grid(GRID + SEARCH)
    project.run(*ONE, '--no-search')
    options = json.loads((project.out / JOB / 'job.json').read_text())['options']
    assert 'optimizer.lr' not in options
    assert [path.name for path in (project.out / 'cdra/cats').iterdir()] == ['final,seed0']


def test_tables_a_given_setting_is_not_searched_for(project):
    project.write_grid(GRID + SEARCH)
    project.run(*ONE, '--cfg-options', 'optimizer.lr=0.2')
    options = json.loads((project.out / JOB / 'job.json').read_text())['options']
    assert options['optimizer.lr'] == '0.2'
    assert [path.name for path in (project.out / 'cdra/cats').iterdir()] == ['final,seed0']


def test_tables_failed_job_stops_no_other_and_is_run_again(project, capsys):
    project.write_grid(with_option('fail_once'))
    with pytest.raises(ConfigError, match='1 of the runs failed'):
        project.run('--methods', 'cdra', 'full', '--tasks', 'cats', '--seeds', '0')
    printed = capsys.readouterr().out
    assert 'failed: cdra cats seed 0: exit code 2: error: the disk is full; log: ' in printed
    assert project.summary('full/cats/final,seed0')['metrics']['top1'] == 60.0
    assert re.search(r'CDRA +-', printed) and re.search(r'Full +60\.0', printed)
    project.run('--methods', 'cdra', 'full', '--tasks', 'cats', '--seeds', '0')
    # It had begun: it goes on from its last checkpoint, or the start where there is none.
    assert project.calls(JOB) == ['--final', '--final --resume']
    assert project.calls('full/cats/final,seed0') == ['--final']


def test_tables_failed_search_chooses_nothing(project, capsys):
    project.write_grid(with_option('fail') + SEARCH)
    with pytest.raises(ConfigError, match='3 of the runs failed'):
        project.run('--methods', 'cdra', 'linear', '--tasks', 'cats', '--seeds', '0')
    assert 'cdra cats: not all settings could be tried' in capsys.readouterr().out
    assert not (project.out / JOB).exists()
    assert project.calls('linear/cats/final,seed0') == ['--final']


@pytest.mark.parametrize('do', ['silent', 'without', 'not_a_number'])
def test_tables_run_without_a_figure_is_a_failure(project, do, capsys):
    project.write_grid(with_option(do))
    with pytest.raises(ConfigError, match='1 of the runs failed'):
        project.run(*ONE)
    assert 'ended without an error, but ' in capsys.readouterr().out


def test_tables_half_written_summary_is_set_aside_and_run_again(project, capsys):
    project.write_grid(with_option('half'))
    with pytest.raises(ConfigError, match='1 of the runs failed'):
        project.run(*ONE)
    assert 'summary.json is half written' in capsys.readouterr().out
    project.run(*ONE)
    assert 'starting again' in capsys.readouterr().out
    # From the start: nobody knows what the checkpoint beside a half-written file is worth.
    assert project.calls(JOB) == ['--final', '--final']
    assert (project.out / JOB / 'summary.json.damaged').is_file()


def test_tables_test_that_is_missing_is_made_up_without_training(project):
    project.run('--methods', 'cdra', '--tasks', 'cars', '--seeds', '0')
    job = 'cdra/cars/final,seed0'
    summary = project.summary(job)
    del summary['test_metrics']
    (project.out / job / 'summary.json').write_text(json.dumps(summary))
    project.run('--methods', 'cdra', '--tasks', 'cars', '--seeds', '0')
    assert project.calls(job) == ['']
    assert 'test_metrics' in project.summary(job)


def test_tables_refuses_results_of_other_settings(project):
    project.run(*ONE)
    with pytest.raises(
        ConfigError, match=r'other settings \(train\.epochs is None there, 5 here\)'
    ):
        project.run(*ONE, '--cfg-options', 'train.epochs=5')
    assert len(project.calls(JOB)) == 1


def test_tables_refuses_a_summary_of_another_method(project):
    project.run(*ONE)
    summary = project.summary(JOB)
    (project.out / JOB / 'summary.json').write_text(json.dumps({**summary, 'method': 'lora'}))
    with pytest.raises(ConfigError, match="is of method 'lora', expected 'cdra'"):
        project.run(*ONE)


def test_tables_refuses_folders_that_are_not_its_own(project):
    (project.out / JOB).mkdir(parents=True)
    (project.out / JOB / 'summary.json').write_text('{}')
    with pytest.raises(
        ConfigError, match=r'is no results folder \(it has no grid.json, but cdra\)'
    ):
        project.run(*ONE)
    (project.out / 'grid.json').write_text('{"grid": "toy"}')
    with pytest.raises(ConfigError, match=r'is not a folder of tables.py \(it has no job.json\)'):
        project.run(*ONE)
    (project.out / JOB / 'job.json').write_text('{"format"')
    with pytest.raises(ConfigError, match='job.json cannot be read'):
        project.run(*ONE)
    (project.out / 'grid.json').write_text('{"grid": "vtab"}')
    with pytest.raises(ConfigError, match="results of the grid 'vtab', not of 'toy'"):
        project.run(*ONE)
    (project.out / 'grid.json').write_text('{"gri')
    with pytest.raises(ConfigError, match='grid.json is damaged'):
        project.run(*ONE)
    assert not project.calls(JOB)


def test_tables_names_folders_of_nobody_and_leaves_them(project, capsys):
    project.run(*ONE)
    stray = [project.out / 'notes', project.out / 'cdra/birds']
    for folder in stray:
        folder.mkdir()
    capsys.readouterr()
    project.run(*ONE)
    printed = capsys.readouterr().out
    assert [f'left alone: {folder}' in printed for folder in stray] == [True, True]
    assert 'left alone: ' + str(project.out / 'cdra/cats') not in printed
    assert all(folder.is_dir() for folder in stray)


def test_tables_dry_run_lists_and_starts_nothing(project, capsys):
    project.write_grid(GRID + SEARCH)
    project.run('--methods', 'cdra', '--tasks', 'cats', '--dry-run')
    printed = capsys.readouterr().out
    assert not project.out.exists()
    assert printed.count('tools/train.py') == 3 and 'optimizer.lr=0.3' in printed
    assert printed.endswith('5 runs: 2 after a search, 3 not run\n')
    project.run('--methods', 'cdra', '--tasks', 'cats')
    capsys.readouterr()
    project.run('--methods', 'cdra', '--tasks', 'cats', '--dry-run')
    assert capsys.readouterr().out.endswith('5 runs: 5 done\n')


def test_tables_show_prints_what_is_done_and_starts_nothing(project, capsys):
    project.run('--show')
    assert not project.out.exists()
    project.run(*ONE)
    capsys.readouterr()
    project.run('--show', '--format', 'csv', '--tasks', 'cats', '--seeds', '0')
    assert capsys.readouterr().out.splitlines()[-1] == 'Cheap,CDRA,70,,1,0.2,0.5'
    assert not project.calls('full/cats/final,seed0')


def test_tables_drops_checkpoints_only_when_asked(project):
    project.run(*ONE)
    kept = {'epoch_2.pth', 'best_top1_epoch_1.pth'}
    assert {path.name for path in (project.out / JOB).glob('*.pth')} == kept
    project.run('--methods', 'cdra', '--tasks', 'cats', '--drop-checkpoints')
    assert not list((project.out / 'cdra/cats/final,seed1').glob('*.pth'))
    assert {path.name for path in (project.out / JOB).glob('*.pth')} == kept


def test_tables_drops_no_file_that_the_run_did_not_write(project):
    project.run(*ONE)
    job = project.out / JOB
    run, weights = {'message_hub': {}, 'optimizer': {}}, {'state_dict': {}}
    mine = {'base.pth': run, 'epoch_9.pth': weights, 'best_top1_epoch_9.pth': weights,
            'best_of_all.pth': run, 'epoch_2_merged.pth': run, 'epoch_8.pth': None}  # fmt: skip
    for name, content in mine.items():
        torch.save(content, job / name) if content else (job / name).write_text('half of it')
    (job / 'epoch_7.pth').symlink_to('base.pth')
    (job / 'summary.json').unlink()
    project.run(*ONE, '--drop-checkpoints')
    assert {path.name for path in job.glob('*.pth')} == {*mine, 'epoch_7.pth'}


def test_tables_drops_what_a_config_names_otherwise(project, capsys):
    config = project.folder / 'configs/toy/cats.py'
    hook = "default_hooks = dict(checkpoint=dict(filename_tmpl='state{}.pth'))\n"
    config.write_text(config.read_text() + hook)
    project.run(*ONE)
    for name in ('state12.pth', 'mine.pth'):
        shutil.copy(project.out / JOB / 'epoch_2.pth', project.out / JOB / name)
    (project.out / JOB / 'summary.json').unlink()
    project.run(*ONE, '--drop-checkpoints')
    assert [path.name for path in (project.out / JOB).glob('*.pth')] == ['mine.pth']
    config.write_text('1/0')
    project.run('--methods', 'cdra', '--tasks', 'cats', '--drop-checkpoints')
    assert 'cdra cats seed 1: checkpoints stay: config' in capsys.readouterr().out
    assert len(list((project.out / 'cdra/cats/final,seed1').glob('*.pth'))) == 2


def test_tables_launcher_stands_before_every_command(project, capsys):
    words = ['toy', '--out', str(project.out), *ONE, '--launcher', 'env GREETING=hi']
    from cdra_mm.tables import study
    from cdra_mm.tables.study_options import parser

    given = parser().parse_args([*words, '--processes', 'pytorch', '--dry-run'])
    study.main(given, project.folder / 'tools')
    printed = capsys.readouterr().out
    assert re.search(r'^ +env GREETING=hi \S*python\S* \S+/tools/train\.py ', printed, re.MULTILINE)
    assert '--final --launcher pytorch --cfg-options' in printed
    study.main(parser().parse_args(words), project.folder / 'tools')
    assert project.summary(JOB)['method'] == 'cdra'
