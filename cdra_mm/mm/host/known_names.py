"""Every private name of OpenMMLab that is used, and every public one that is replaced, and why."""

from __future__ import annotations

from functools import cache

from .signatures import HostName, check_names

__all__ = ['KNOWN_NAMES', 'require']

# Of each package: the releases that are tested.
RELEASES = {
    'mmengine': 'onedl-mmengine 0.10.12 or mmengine 0.10.7',
    'mmpretrain': 'onedl-mmpretrain 1.3.6 or mmpretrain 1.2.0',
    'mmseg': 'onedl-mmsegmentation 1.4.2 or mmsegmentation 1.2.2',
}

_RUNNER, _LOOPS = 'mmengine.runner.Runner', 'mmengine.runner.EpochBasedTrainLoop'
_HOOK = 'mmengine.hooks.CheckpointHook'
_WRAPPER, _HISTORY = 'mmengine.optim.OptimWrapper', 'mmengine.logging.HistoryBuffer'
_CHECKPOINT, _CONFIG = 'mmengine.runner.checkpoint', 'mmengine.config.Config'
_HUB, _BASE = 'mmengine.logging.MessageHub', 'mmengine.model.BaseModule'
_SAVED = (
    'self', 'out_dir', 'filename', 'file_client_args', 'save_optimizer', 'save_param_scheduler',
    'meta', 'by_epoch', 'backend_args',
)  # fmt: skip

KNOWN_NAMES = (
    # The runner. `runner_parts`.
    HostName(f'{_RUNNER}._train_loop', 'tell a training from a test before it begins',
             set_in='__init__'),
    HostName(f'{_RUNNER}._val_loop', 'reach a loader without building one', set_in='__init__'),
    HostName(f'{_RUNNER}._test_loop', 'reach a loader without building one', set_in='__init__'),
    HostName(f'{_RUNNER}._resume', 'tell a resumed run, and start anew where there is nothing to '
             'resume', set_in='__init__'),
    HostName(f'{_RUNNER}._load_from', 'know the base that a run loads, and choose the checkpoint '
             'that it resumes', set_in='__init__'),
    HostName(f'{_RUNNER}._maybe_compile', 'compile a model that was wrapped anew',
             takes=('self', 'target')),
    HostName(f'{_RUNNER}.model', 'replace it by one that is wrapped anew', set_in='__init__'),
    HostName(f'{_RUNNER}.optim_wrapper', 'replace it by one of what is trained now',
             set_in='__init__'),
    HostName(f'{_RUNNER}.param_schedulers', 'replace them by those of the new optimizer',
             set_in='__init__'),
    HostName(f'{_RUNNER}.hooks', 'replace its checkpoint hooks'),
    HostName(f'{_RUNNER}.save_checkpoint', 'write under a temporary name first', takes=_SAVED),
    HostName('mmengine.optim._ParamScheduler', 'tell a scheduler object from its config'),
    HostName(f'{_HOOK}._save_checkpoint_with_step', 'remove old checkpoints after the new one is '
             'written', takes=('self', 'runner', 'step', 'meta')),
    HostName(f'{_HOOK}._save_best_checkpoint', 'remove the old best after the new one is written',
             takes=('self', 'runner', 'metrics')),
    HostName(f'{_HOOK}.file_backend', 'note what it removes', set_in='before_train'),
    HostName(f'{_LOOPS}._max_iters', 'end a run whose epochs have another length now',
             set_in='__init__'),
    HostName(f'{_LOOPS}.run_iter', 'tell hooks the position within a resumed epoch',
             takes=('self', 'idx', 'data_batch')),
    HostName('mmengine.runner.BaseLoop.dataloader', 'leave out what was done of an epoch',
             set_in='__init__'),
    HostName(f'{_WRAPPER}._inner_count', 'count the iterations that wait for a step',
             set_in='__init__'),
    HostName(f'{_WRAPPER}._max_counts', 'tell the last iteration, which always steps',
             set_in='__init__'),
    HostName(f'{_WRAPPER}._accumulative_counts', 'count the iterations that wait for a step',
             set_in='__init__'),
    HostName(f'{_CONFIG}._cfg_dict', 'put names in the place of classes before it is written',
             set_in='__init__'),
    HostName(f'{_CONFIG}._filename', 'write it beside a file of that name', set_in='__init__'),
    HostName('mmengine.visualization.Visualizer._vis_backends', 'make no pictures that nothing '
             'takes', set_in='__init__'),
    HostName('mmengine.config.utils.MODULE2PACKAGE', 'let configs name the forks, and ours'),
    # Checkpoint files. `checkpoint_loaders`.
    HostName(f'{_CHECKPOINT}.CheckpointLoader._schemes', 'register each of its loaders anew'),
    HostName(f'{_CHECKPOINT}.load_from_http', 'check a download before it is kept',
             takes=('filename', 'map_location', 'model_dir', 'progress')),
    HostName(f'{_CHECKPOINT}._safe_torch_load', 'read files without running what is in them',
             takes=('file', 'map_location', 'weights_only'), optional=True),
    HostName(f'{_HISTORY}._log_history', 'make a buffer of the values in a file',
             set_in='__init__'),
    HostName(f'{_HISTORY}._count_history', 'make a buffer of the values in a file',
             set_in='__init__'),
    HostName(f'{_HISTORY}._statistics_methods', 'read the names of its functions in a file'),
    HostName('mmengine.optim.OneCycleLR._annealing_cos', 'read the name of a curve in a file',
             takes=('start', 'end', 'pct')),
    HostName('mmengine.optim.OneCycleLR._annealing_linear', 'read the name of a curve in a file',
             takes=('start', 'end', 'pct')),
    HostName(f'{_HUB}._runtime_info', 'read the object that old checkpoints hold',
             set_in='__init__'),
    HostName(f'{_HUB}._resumed_keys', 'read the object that old checkpoints hold',
             set_in='__init__'),
    # Models. `model_patches`.
    HostName(f'{_BASE}._params_init_info', 'keep the report of a repeated initialisation out of '
             'the log', set_in='init_weights'),
    HostName(f'{_BASE}.is_init', 'have init_cfg load the base once more'),
    HostName('mmengine.model.BaseModel._run_forward', 'run the training loss once',
             takes=('self', 'data', 'mode')),
    HostName('mmengine.runner.activation_checkpointing.wrap_forward', 'find the forward inside',
             takes=('forward',)),
    # Data. `data_wrapping`.
    HostName('mmengine.dataset.BaseDataset.pipeline', 'name the file that a step fails at',
             set_in='__init__'),
    # mmpretrain and mmseg.
    HostName('mmpretrain.models.VisionTransformer._format_output', 'normalise each layer that it '
             'returns', takes=('self', 'x', 'hw')),
    HostName('mmpretrain.models.ClsDataPreprocessor.batch_augments', 'mix no samples while they '
             'are scored', set_in='__init__'),
    HostName('mmpretrain.engine.hooks.VisualizationHook._draw_samples', 'paint images of one name '
             'apart', takes=('self', 'batch_idx', 'data_batch', 'data_samples', 'step')),
    HostName('mmpretrain.apis.base.BaseInferencer._config', 'hand a built model to the '
             'inferencer', set_in='__init__'),
    HostName('mmpretrain.apis.ImageClassificationInferencer.classes', 'name the classes once the '
             'model has said how many there are', set_in='__init__'),
    HostName('mmseg.apis.MMSegInferencer._load_weights_to_model', 'refuse a checkpoint that does '
             'not fit', takes=('self', 'model', 'checkpoint', 'cfg')),
    HostName('mmseg.models.decode_heads.decode_head.BaseDecodeHead._transform_inputs', 'take the '
             'features that a config chooses', takes=('self', 'inputs')),
    HostName('mmseg.models.BEiT.resize_rel_pos_embed', 'give files with foreign names to its load '
             'hooks', takes=('self', 'checkpoint')),
)  # fmt: skip


@cache
def require(package: str) -> None:
    """Checks what is known of a package, the first time that it is asked for.

    Raises:
        HostError: Names the first name that is gone or takes other arguments.
    """
    names = [name for name in KNOWN_NAMES if name.package == package]
    check_names(package, names, RELEASES[package])
