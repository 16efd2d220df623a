"""peft's own tests of a tuner, run against ours.

Not collected by default, and nothing of peft's is here: it takes a checkout of its tests.

    git clone --depth 1 https://github.com/huggingface/peft; pip install diffusers datasets
    CDRA_PEFT_TESTS=peft/tests python -m pytest tests/peft/tests_of_peft.py -q

The classes below are theirs, with our cases in the place of theirs. docs/peft.md says how many
pass, and why the others cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from cdra_mm.core import Block, Plan, SparseMatrix, Vector
from cdra_mm.peft import CdraConfig

FOLDER = os.environ.get('CDRA_PEFT_TESTS', '')
if not FOLDER:
    pytest.skip('CDRA_PEFT_TESTS names no checkout of tests of peft', allow_module_level=True)


def _their(module: str):
    """A module of their tests, which are a package of relative imports, under another name."""
    if 'their_tests' not in sys.modules:
        start = Path(FOLDER).resolve() / '__init__.py'
        spec = importlib.util.spec_from_file_location(
            'their_tests', start, submodule_search_locations=[str(start.parent)]
        )
        sys.modules['their_tests'] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules['their_tests'])
    return importlib.import_module(f'their_tests.{module}')


def block(name, shape, rank=2):
    rows, cols = (tuple(range(0, side, 2)) or (0,) for side in shape)
    return Block(name, shape, rows, cols, rank, 0)


LIN0, LIN1 = block('lin0.weight', (20, 10)), block('lin1.weight', (2, 20), 1)
BIAS = Vector('lin0.bias', 20, None, 0)
PLANS = {
    'one block': Plan(blocks=(LIN0,)),
    'two blocks': Plan(blocks=(LIN0, LIN1)),
    'block and vector': Plan(blocks=(LIN1,), vectors=(BIAS,)),
    'entries': Plan(sparse=(SparseMatrix('lin0.weight', (20, 10), tuple(range(0, 200, 7))),)),
}
CASES = [
    *((f'CDRA {name}', 'MLP', CdraConfig, {'plan': plan}) for name, plan in PLANS.items()),
    ('CDRA and head', 'MLP', CdraConfig, {'plan': PLANS['one block'], 'modules_to_save': ['lin1']}),
    ('CDRA MLP2', 'MLP2', CdraConfig, {'plan': Plan(blocks=(block('lin1.weight', (2, 32), 1),))}),
    ('CDRA norm', 'MLP_LayerNorm', CdraConfig, {'plan': Plan(
        blocks=(LIN0,), also_train={'layernorm0.weight': 10},
    )}),
    ('CDRA attention', 'MHA', CdraConfig, {'plan': Plan(
        blocks=(block('mha.in_proj_weight:q', (10, 10)), block('mha.out_proj.weight', (10, 10))),
    )}),
]  # fmt: skip
# init_weights=False as theirs: adapters that do something before they are trained.
PAIRS = [
    (
        f'CDRA {name}',
        'cdra',
        CdraConfig,
        *(dict(plan=plan, init_weights=False, seed=seed) for seed, plan in enumerate(plans)),
    )
    for name, plans in {
        'Same': (PLANS['one block'], PLANS['one block']),
        'Different': (PLANS['one block'], Plan(blocks=(LIN1,))),
    }.items()
]

theirs = _their('test_custom_models')
theirs.TEST_CASES[:] = CASES
theirs.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = PAIRS
theirs.ALL_PEFT_CONFIG_CLASSES[:] = []  # these make a config of target_modules, which ours has not

TestPeftCustomModel = theirs.TestPeftCustomModel
TestMultipleActiveAdapters = theirs.TestMultipleActiveAdapters
