"""As crop_518.py, at 512 pixels (32 patches of 16)."""

_base_ = './crop_518.py'

crop_size = (512, 512)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2]['scale'] = test_pipeline[1]['scale'] = (2048, 512)
train_pipeline[3]['crop_size'] = crop_size
