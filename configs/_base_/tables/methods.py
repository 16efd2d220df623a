"""The rows that the papers' tables share, grouped as the CDRA paper's Table 1 groups them.

APLA, SoMA, DoRA and Mona stand in none of its tables: they are what one would pick for dense
prediction today. APLA trains weights in place, as Partial does, SoMA and DoRA merge as LoRA does.

A grid inherits them and says over what settings each may search. Shares of SPT are Table 1's on
VTAB-1k; CDRA's stands in the configs. Numbers of prompts and ranks are fixed: the papers of VPT
choose them for each task, which would be more effort than the other rows get. `cdra` is this
package's default; `cdra_eq7` names the rule for ranks that the paper prints, whatever the default.
How the authors trained their own rows, which all are trained alike here: docs/methods.md.
"""

methods = dict(
    full=dict(title='Full', method=dict(type='full')),
    mlp=dict(title='MLP-3', family='Addition-based', method=dict(type='mlp')),
    vpt_shallow=dict(title='VPT-Shallow', family='Addition-based', method=dict(type='vpt_shallow')),
    vpt_deep=dict(title='VPT-Deep', family='Addition-based', method=dict(type='vpt_deep')),
    adapter=dict(title='Adapter', family='Addition-based', method=dict(type='adapter')),
    # The sizes of all 19 subnets that its authors released for VTAB-1k.
    noah=dict(
        title='NOAH',
        family='Addition-based',
        method=dict(
            type='noah', prompt_dims=[1, 5, 10], lora_dims=[1, 5, 10], adapter_dims=[1, 5, 10]
        ),
    ),
    mona=dict(title='Mona', family='Addition-based', method=dict(type='mona')),
    linear=dict(title='Linear', family='Reparameterization-based', method=dict(type='linear')),
    partial=dict(title='Partial-1', family='Reparameterization-based', method=dict(type='partial')),
    bias=dict(title='Bias', family='Reparameterization-based', method=dict(type='bias')),
    lora=dict(title='LoRA', family='Reparameterization-based', method=dict(type='lora', rank=8)),
    rlrr=dict(title='RLRR', family='Reparameterization-based', method=dict(type='rlrr')),
    dora=dict(title='DoRA', family='Reparameterization-based', method=dict(type='dora', rank=8)),
    soma=dict(title='SoMA', family='Reparameterization-based', method=dict(type='soma', rank=16)),
    apla=dict(title='APLA', family='Reparameterization-based', method=dict(type='apla')),
    gps=dict(title='GPS', family='Selection-based', method=dict(type='gps')),
    spt_adapter=dict(
        title='SPT-Adapter',
        family='Selection-based',
        method=dict(type='spt_adapter', rank=8, budget_percent=0.51),
    ),
    spt_lora_8=dict(
        title='SPT-LoRA-8',
        family='Selection-based',
        method=dict(type='spt_lora', rank=8, budget_percent=0.51),
    ),
    spt_lora_16=dict(
        title='SPT-LoRA-16',
        family='Selection-based',
        method=dict(type='spt_lora', rank=16, budget_percent=1.36),
    ),
    cdra=dict(title='CDRA', family='Selection-based', method=dict(type='cdra')),
    cdra_eq7=dict(
        title='CDRA-SPT (Eq. 7 to the letter)',
        family='Selection-based',
        method=dict(type='cdra', allocation='scores', rank_rule='eq7', rank_alpha=1),
    ),
)
