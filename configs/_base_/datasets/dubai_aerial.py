"""Land cover of Dubai seen by satellites, 5 classes, crops of 256 pixels; unlabelled is 255.

Folder: ``CDRA_DUBAI_AERIAL_ROOT``, or the path below, in the layout of ``crops_256.py``.
Source: "Semantic segmentation of aerial imagery", Humans in the Loop with the Mohammed Bin Rashid
Space Center, 72 images of 8 scenes; called an open access data set by its publisher.
Labels of the source: #3C1098 is 0, building; #8429F6 is 1, land; #6EC1E4 is 2, road; #FEDD3A is 3,
vegetation; #E2A929 is 4, water; #9B9B9B and #000000 are 255. Images scaled to cover a grid of
crops; scenes 1, 2, 4, 5 and 7 train, 3 validates, 6 and 8 test: 36 crops of one scene are little to
choose by.
"""

_base_ = './crops_256.py'

data_root = '{{$CDRA_DUBAI_AERIAL_ROOT:data/dubai_aerial}}'
prepare_data = 'the labels and the layout that configs/_base_/datasets/dubai_aerial.py names'
metainfo = dict(
    classes=('building', 'land', 'road', 'vegetation', 'water'),
    palette=[[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58], [226, 169, 41]],
)
train_dataloader = val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo)
)
