"""The examples run as they are shown."""

from __future__ import annotations

import re
import runpy
import sys

import pytest

pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
pytest.importorskip('timm')
pytest.importorskip('transformers', '5.24')

RUNS = {
    'peft_timm': ['--count', '16', '--epochs', '1'],
    'peft_trainer': ['--steps', '4'],
    'medical_monai': ['--count', '2', '--epochs', '1'],
    'geospatial_torchgeo': ['--count', '8', '--epochs', '1'],
}
NEEDS = {'medical_monai': 'monai', 'geospatial_torchgeo': 'torchgeo'}


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', RUNS)
def test_example_ends_with_what_it_has_loaded_again(name, repository, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f'{NEEDS[name]} is not installed')
    monkeypatch.setattr(sys, 'argv', [name, *RUNS[name]])
    runpy.run_path(str(repository / 'examples' / f'{name}.py'), run_name='__main__')
    told = capsys.readouterr().out
    assert 'trainable params' in told
    (line,) = [line for line in told.splitlines() if 'loaded, largest difference' in line]
    assert line.endswith(': 0.0')


def test_code_of_the_page_runs(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = (repository / 'docs' / 'peft.md').read_text(encoding='utf-8')
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    exec(compile(code, 'docs/peft.md', 'exec'), {})
    assert {'adapter_config.json', 'adapter_model.safetensors'} <= {
        path.name for path in (tmp_path / 'adapter').iterdir()
    }
