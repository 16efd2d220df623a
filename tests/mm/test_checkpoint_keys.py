"""Averaged weights have the record of their checkpoint once it is read, and only then."""

from __future__ import annotations

import torch

from cdra_mm.core.model.own_state import PLAN_KEY
from cdra_mm.mm.checkpoints.checked import check_checkpoint
from cdra_mm.mm.checkpoints.keys import AVERAGED, PREFIX, RECORD_KEY

RECORD = {PREFIX + RECORD_KEY: torch.ones(3), PREFIX + PLAN_KEY: torch.zeros(2)}


def test_averaged_weights_get_the_record_that_stands_beside_the_others():
    found = check_checkpoint(
        {
            'state_dict': {**RECORD, 'a': torch.ones(1)},
            'ema_state_dict': {'module.a': torch.ones(1)},
        },
        'a.pth',
    )
    averages = found['ema_state_dict']
    assert averages.keys() == {'module.a', *(AVERAGED + key for key in RECORD)}
    assert all(averages[AVERAGED + key] is value for key, value in RECORD.items())


def test_plain_averages_stay_as_they_are():
    plain = {'state_dict': {'a': torch.ones(1)}, 'ema_state_dict': {'module.a': torch.ones(1)}}
    assert check_checkpoint(plain, 'a.pth')['ema_state_dict'].keys() == {'module.a'}
