"""What each part of the allocation by gradient energy is worth, one left out or changed at a time.

Command: python tools/tables.py parts_cpu --jobs 2 --report --against energy_start
Data, weights, model, training: as in study_cpu.
Rows: ``_start`` begins the factors along the mean gradient; ``_whole`` takes whole matrices, not
    blocks of a half, a quarter and an eighth as well; ``_novec`` trains no vectors; ``_rank24``
    allows ranks to 24, not 8; ``_fitted`` scores and begins with a head that was fitted alone for
    100 steps on the features of the frozen backbone; ``_slow_down`` trains ``down`` at a tenth of
    the rate, ``_fast_down`` at three times it; ``_signal`` plans and begins with the mean gradient
    over the root mean square of the samples', ``_momentum`` with its average under the drawn head
    and three that were fitted for 5 to 20 steps; ``_again`` merges after 50 steps, scores and plans
    anew; ``_int8`` keeps the frozen matrices in int8. ``linear_long`` trains the head 1350 steps
    more than ``linear``: had it converged? ``dora_qkv`` is peft's DoRA of rank 2 on the fused qkv.
Search: two rates of study_cpu's ladder, best there on four of six tasks for energy_start, so a
    best rate lies at an edge: differences between the rows count, not their heights.
Result: docs/results.md; runs in docs/records.
"""

_base_ = './study_cpu.py'

title = 'Parts of the allocation by gradient energy'
rates = [3e-3, 1e-2]

ENERGY = dict(type='cdra', budget_percent=0.5, allocation='energy', start='random')
COUNT = dict(type='cdra', budget_percent=0.5, rank_rule='count')
LORA = dict(type='lora', rank=3)
methods = dict(
    _delete_=True,
    energy_start=dict(method=ENERGY, start=True),
    energy=dict(method=ENERGY),
    energy_start_whole=dict(method=ENERGY, rules=dict(sides=(1.0,)), start=True),
    energy_start_novec=dict(method=ENERGY, rules=dict(vectors=False), start=True),
    energy_start_whole_novec=dict(
        method=ENERGY, rules=dict(sides=(1.0,), vectors=False), start=True
    ),
    energy_start_rank24=dict(method=ENERGY, rules=dict(max_rank=24), start=True),
    energy_start_fitted=dict(method=ENERGY, start=True, head_iterations=100),
    energy_start_slow_down=dict(method=ENERGY, start=True, rate_factors=dict(down=0.1)),
    energy_start_fast_down=dict(method=ENERGY, start=True, rate_factors=dict(down=3.0)),
    energy_start_signal=dict(method=ENERGY, rules=dict(), start=True, gradient='signal'),
    energy_start_momentum=dict(method=ENERGY, rules=dict(), start=True, gradient='momentum'),
    energy_start_again=dict(method=ENERGY, start=True, again=50),
    count=dict(method=COUNT),
    count_start=dict(method=COUNT, start=True),
    count_int8=dict(method=COUNT, base_dtype='int8'),
    lora=dict(method=LORA),
    linear=dict(method=dict(type='linear'), rate=None),
    linear_long=dict(method=dict(type='linear'), rate=None, head_iterations=1350),
    lora_start=dict(method=LORA, start=True),
    lora_fitted=dict(method=LORA, head_iterations=100),
    dora_qkv_fitted=dict(peft=_base_.methods.dora_qkv.peft, head_iterations=100),
)
tasks = {name: dict(_delete_=True) for name in _base_.tasks if name.endswith(('_fitted', '_brief'))}
del ENERGY, COUNT, LORA
