"""What the classes that a config names take, and what holds where a config says nothing."""

from __future__ import annotations

from mmengine.registry import METRICS, MODELS
from mmseg.models.decode_heads import FCNHead

from cdra_mm.mm.registry_classes import class_of, default_of, settings_of


class HandsOn(FCNHead):
    def __init__(self, own=1, **kwargs):
        super().__init__(**kwargs)


class HandsNothingOn(FCNHead):
    """The defaults of its bases hold all the same."""

    def __init__(self, in_channels, num_classes):
        super().__init__(in_channels=in_channels, num_classes=num_classes, channels=4)


def test_a_default_is_that_of_the_nearest_base_that_has_it():
    for cls in (FCNHead, HandsOn, HandsNothingOn):
        assert default_of(cls, 'ignore_index') == 255
    assert default_of(HandsOn, 'own') == 1 and default_of(HandsOn, 'nothing') is None
    assert default_of(FCNHead, 'in_channels') is None and default_of(None, 'own') is None


def test_settings_are_those_of_a_base_where_a_class_hands_words_on():
    assert settings_of(HandsOn)[0] == 'own' and 'ignore_index' in settings_of(HandsOn)
    assert settings_of(HandsNothingOn) == ['in_channels', 'num_classes']


def test_a_class_is_found_by_its_name_or_itself():
    assert class_of(MODELS, HandsOn) is HandsOn and class_of(MODELS, 'mmseg.FCNHead') is FCNHead
    for kind in ('mmseg.NoSuchHead', '', '.', None, 3, ['FCNHead']):
        assert class_of(METRICS, kind) is None
