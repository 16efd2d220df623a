"""What rows of a study in memory cost, on a clock of the test."""

from __future__ import annotations

import json
from itertools import count

import pytest

from cdra_mm.core import ConfigError
from cdra_mm.tables.small_costs import costs_of, main
from cdra_mm.tables.small_file import read_small_study
from cdra_mm.tables.small_runs import Setting
from tests.benchmark.test_rounding import tiny_vit, vtab  # noqa: F401
from tests.tables.test_small_study import study  # noqa: F401


def test_costs_are_of_what_is_trained(study):  # noqa: F811
    read = read_small_study(study)
    setting = Setting(read.data('b'), tiny_vit, 0, iterations=1, batch=4)
    ticks = count()
    costs = costs_of(read, 'b', setting, 2, clock=lambda: float(next(ticks)))
    assert list(costs) == ['linear', 'bias']
    assert costs['linear'].params == 0 < costs['bias'].params
    assert costs['bias'].file_bytes > costs['linear'].file_bytes + 4 * costs['bias'].params
    # Bias keeps what its gradients need, and its moments; the frozen backbone keeps nothing.
    assert costs['bias'].peak_bytes > costs['linear'].peak_bytes + 12 * costs['bias'].params
    assert {cost.ratio for cost in costs.values()} == {1.0}


def test_the_command_prints_and_writes_them(study, tmp_path, capsys):  # noqa: F811
    out = tmp_path / 'costs.json'
    words = [str(study), '--task', 'b', '--rounds', '1', '--json', str(out)]
    main(words, backbone=lambda _, size: tiny_vit(size))
    shown = capsys.readouterr().out
    assert 'time over linear' in shown and 'Bias' in shown
    assert set(json.loads(out.read_text())) == {'linear', 'bias'}


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--task', 'c'], "'c' is not in the grid"),
        (['--task', 'b', '--methods', 'bais'], "did you mean 'bias'"),
        (['--task', 'b', '--rounds', '0'], '--rounds 0: expected at least 1'),
    ],
)
def test_wrong_words_are_refused(study, words, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        main([str(study), *words], backbone=lambda _, size: tiny_vit(size))
