"""Electron microscopy of neural tissue (Drosophila larva, ssTEM), 5 classes, crops of 256 pixels.

Folder: ``CDRA_VNC_EM_ROOT``, or the path below, in the layout of ``crops_256.py``.
Source: Gerhard, Funke, Martel, Cardona, Fetter, figshare 10.6084/m9.figshare.856713, 20 serial
sections of 1024 x 1024; CC BY-NC-SA 3.0.
Labels of the source: 255 is 0, intracellular; 0, 32, 64, 96 and 128 are 1, membrane; 191 is 2,
mitochondrion; 223 is 3, synapse; 159 is 4, glia and extracellular. 16 crops a section without
scaling; sections 0 to 11 train, 13 and 14 val, 16 to 19 test: the same cells go on through them.
"""

_base_ = './crops_256.py'

data_root = '{{$CDRA_VNC_EM_ROOT:data/vnc_em}}'
prepare_data = 'the labels and the layout that configs/_base_/datasets/vnc_em.py names'
metainfo = dict(
    classes=('intracellular', 'membrane', 'mitochondrion', 'synapse', 'glia_extracellular'),
    palette=[[255, 255, 255], [0, 0, 0], [220, 60, 60], [250, 200, 40], [90, 140, 220]],
)
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo)
)
