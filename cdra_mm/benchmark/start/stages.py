"""Which functions of a run are which part of its start, by name.

A name is ``module:function`` or ``module:Class.method``. What they call counts as theirs unless it
is a stage itself. A module that a run does not import, or one that lacks the name in this release
of OpenMMLab, has no such stage in that run.
"""

from __future__ import annotations

__all__ = ['FIRST', 'FITTING', 'ITERATIONS', 'IMPORTS', 'OTHER', 'SCORING', 'STAGES', 'STEPS']

FIRST = 'interpreter'  # until the script begins
IMPORTS = 'imports'
SCORING = 'scoring'
FITTING = 'fitting the head'
STEPS = 'training steps'
OTHER = 'the rest'  # of the script, between all these

# Stage -> its functions, in the order in which a run meets them.
STAGES: dict[str, tuple[str, ...]] = {
    'config': (
        'mmengine.config.config:Config.fromfile',
        'mmengine.config.config:Config.dump',
        'cdra_mm.mm.launch:load_config',
        'cdra_mm.mm.launch:prepare_config',
        'cdra_mm.mm.backbone:wrap_config',
    ),
    'checks of the input': (
        'cdra_mm.mm.inputs:check_inputs',
        'cdra_mm.mm.data_check.early_check:check_data',
    ),
    'building': (
        'mmengine.runner.runner:Runner.from_cfg',
        'mmengine.runner.runner:Runner.build_model',
        'mmengine.runner.runner:Runner.build_train_loop',
        'mmengine.runner.runner:Runner.build_val_loop',
        'mmengine.runner.runner:Runner.build_optim_wrapper',
        'mmengine.runner.runner:Runner.build_param_scheduler',
    ),
    'initial weights': ('mmengine.model.base_module:BaseModule.init_weights',),
    'reading weights': (
        'mmengine.runner.checkpoint:CheckpointLoader.load_checkpoint',
        'cdra_mm.mm.compatibility:load_checkpoint',
    ),
    'comparing with the file': ('cdra_mm.mm.checkpoints.base_weights:reproduced_names',),
    'digests': (
        'cdra_mm.core.model.digests:digests_of',
        'cdra_mm.core.model.digests:fingerprint',
        'cdra_mm.core.model.digests:fingerprint_differences',
    ),
    'what can be trained': ('cdra_mm.mm.planning.withheld:withheld_parameters',),
    FITTING: ('cdra_mm.mm.planning.head_fit:fit_head',),
    SCORING: ('cdra_mm.mm.planning.scoring:score_backbone',),
    'planning': ('cdra_mm.mm.planning.run_plan:RunPlanner.plan',),
    'adapters': (
        'cdra_mm.core.adapters.apply:apply_plan',
        'cdra_mm.mm.checkpoints.record:make_record',
    ),
    'rebuild': ('cdra_mm.mm.rebuild:rebuild',),
    'pictures of the plan': ('cdra_mm.mm.visual_hook:VisualHook.before_train',),
    "the hook's rest": (
        'cdra_mm.mm.hook:CDRAHook.before_run',
        'cdra_mm.mm.hook:CDRAHook.before_train',
    ),
}
# An iteration of a training loop; the run ends after as many as are asked for.
ITERATIONS = (
    'mmengine.runner.loops:IterBasedTrainLoop.run_iter',
    'mmengine.runner.loops:EpochBasedTrainLoop.run_iter',
)
