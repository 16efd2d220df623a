"""Predictions for a folder of images, by OpenMMLab's own inferencers.

`strict_loading` brings a checkpoint, adapted or plain, into the model of a config and refuses one
that does not fit. `segmentation` and `classification` say what is written of an image. `folder`
goes through the images.
"""

from .folder import Outcome, predict_folder

__all__ = ['Outcome', 'predict_folder']
