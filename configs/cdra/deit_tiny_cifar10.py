"""CDRA of DeiT-Tiny on 1000 images of CIFAR-10, listed as VTAB-1k lists its tasks (it is none).

Command: python tools/train.py configs/cdra/deit_tiny_cifar10.py
    For the figure to report: once more with --final (train on all 1000 images, test at the end).
Data: CDRA_VTAB_ROOT/cifar10 with the four lists of a task: see configs/_base_/datasets/vtab.py.
Memory: 3.1 GB. Result: 59.9 top-1 with --final and train_cfg.max_epochs=10, a head alone 48.8, on
    damaged weights with allocation='scores' (one seed, docs/results.md); healthy weights, the
    default's allocation and the 100 epochs are not yet measured.
Rates: on short schedules with the head at 1e-2 the backbone's best were 3e-3 to 2e-2
    (docs/results.md); lower it first if CDRA is below the head alone.
Frozen backbone or full fine-tuning for comparison:
    --cfg-options default_hooks.cdra.method.type=linear  (or full)
"""

_base_ = '../_base_/recipes/cdra_deit_tiny_vtab.py'

classes = [
    'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
]  # fmt: skip
model = dict(head=dict(num_classes=10))
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=f'{_base_.vtab_root}/cifar10', classes=classes)
)
