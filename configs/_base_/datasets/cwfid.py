"""Carrots and weeds from a field robot's two-band camera (CWFID), 3 classes, crops of 256 pixels.

Folder: ``CDRA_CWFID_ROOT``, or the path below, in the layout of ``crops_256.py``.
Source: github.com/cwfid/dataset (Haug, Ostermann, CVPPP 2014), 60 images of 1296 x 966; for
non-commercial research.
Labels of the source: black is 0, soil; green is 1, crop; red is 2, weed. Scaled by 0.795 (labels by
the nearest pixel) to cover 4 x 3 crops, those with less than 0.5 percent of plants left out; split
by train_test_split.yaml, every sixth training image validates.
"""

_base_ = './crops_256.py'

data_root = '{{$CDRA_CWFID_ROOT:data/cwfid}}'
prepare_data = 'the labels and the layout that configs/_base_/datasets/cwfid.py names'
metainfo = dict(
    classes=('soil', 'crop', 'weed'),
    palette=[[0, 0, 0], [0, 255, 0], [255, 0, 0]],
)
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo)
)
