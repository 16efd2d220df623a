"""Hugging Face peft's methods beside CDRA, LoRA and bias tuning of this package.

Command: make compare
    which is python tools/tables.py compare_peft --jobs 2 --report, and
    python -m cdra_mm.tables.small_costs configs/tables/compare_peft.py --task caltech101
Data, weights, model, training: as in study_cpu, on its six tasks. peft 0.21.
Rows: each of peft's tuners trains about as many parameters as LoRA of rank 3 on the fused qkv
    (27,648), as far as its settings allow. Where it can choose, it adapts all four matrices of
    every block; LoRA and its kin adapt qkv, which served them best in their papers.
Search: the backbone's rate, as in study_cpu. One seed; three for LoRA, VeRA and CDRA (--seeds 0 1 2
    --methods dora lora vera cdra_energy), five for DoRA (--seeds 0 1 2 3 4 --methods dora).
Forgetting: of 500 test photographs of Caltech-101 those that the pretrained ImageNet head on the
    tuned backbone still calls what it called them before, whatever the task was; in its size.
Result: docs/peft.md; runs in docs/records. Some five hours of two cores.
"""

_base_ = './study_cpu.py'

title = "peft's methods and CDRA"
seeds = [0]
remembered = dict(folder='{{$CDRA_VTAB_ROOT:data/vtab-1k}}/caltech101', images=500)

QKV = ['qkv']
ALL = ['qkv', 'attn.proj', 'fc1', 'fc2']
methods = dict(
    _delete_=True,
    linear=dict(title='Head alone', family='cdra_mm', method=dict(type='linear'), rate=None),
    cdra_descent=dict(
        title='CDRA (descent)',
        family='cdra_mm',
        method=dict(type='cdra', budget_percent=0.5, allocation='descent', start='gradient'),
    ),
    cdra_energy=dict(
        title='CDRA (gradient energy)',
        family='cdra_mm',
        method=dict(type='cdra', budget_percent=0.5, allocation='energy', start='gradient'),
    ),
    cdra_eq7=dict(
        title='CDRA-SPT (Eq. 7)',
        family='cdra_mm',
        method=dict(type='cdra', budget_percent=0.5, allocation='scores'),
    ),
    lora=dict(
        title='LoRA',
        family='peft',
        peft=dict(peft_type='LORA', r=3, lora_alpha=3, target_modules=QKV),
    ),
    dora=dict(
        title='DoRA',
        family='peft',
        peft=dict(peft_type='LORA', use_dora=True, r=2, lora_alpha=2, target_modules=QKV),
    ),
    adalora=dict(
        title='AdaLoRA',
        family='peft',
        peft=dict(
            peft_type='ADALORA',
            init_r=4,
            target_r=3,
            lora_alpha=4,
            tinit=30,
            tfinal=60,
            deltaT=5,
            total_step=150,
            target_modules=QKV,
        ),
    ),
    shira=dict(title='SHiRA', family='peft', peft=dict(peft_type='SHIRA', r=3, target_modules=QKV)),
    vera=dict(title='VeRA', family='peft', peft=dict(peft_type='VERA', r=128, target_modules=ALL)),
    oft=dict(
        title='OFT',
        family='peft',
        peft=dict(peft_type='OFT', r=0, oft_block_size=4, target_modules=ALL),
    ),
    randlora=dict(
        title='RandLoRA',
        family='peft',
        peft=dict(peft_type='RANDLORA', r=16, target_modules=QKV),
        rate=3e-4,
    ),
    miss=dict(title='MiSS', family='peft', peft=dict(peft_type='MISS', r=4, target_modules=QKV)),
    fourierft=dict(
        title='FourierFT',
        family='peft',
        peft=dict(
            peft_type='FOURIERFT',
            n_frequency=576,
            scaling=150.0,
            init_weights=True,
            target_modules=ALL,
        ),
    ),
    ia3=dict(
        title='IA3',
        family='peft',
        peft=dict(peft_type='IA3', target_modules=['qkv', 'fc2'], feedforward_modules=['fc2']),
    ),
)
tasks = {name: dict(_delete_=True) for name in _base_.tasks if name.endswith(('_fitted', '_brief'))}
del QKV, ALL
