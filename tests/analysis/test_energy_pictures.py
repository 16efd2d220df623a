"""Pictures of a run whose blocks come from the energy of the mean gradient."""

from __future__ import annotations

import pytest

pytest.importorskip('mmpretrain')

from cdra_mm.analysis.pictures_of_run import plan_pictures
from cdra_mm.analysis.regions import regions_of
from cdra_mm.analysis.run import read_run
from tests.mm import toy


def test_pictures_of_its_run_speak_of_no_selected_entries(tmp_path):
    toy.train(
        toy.config(
            tmp_path, cdra=dict(method=dict(type='cdra', allocation='energy'), keep_scores='masks')
        )
    )
    run = read_run(tmp_path / 'run')
    pictures = {picture.name: picture for picture in plan_pictures(run, regions_of(run))}
    assert not {'reorganised_matrix', 'density'} & pictures.keys()
    assert 'the block that is adapted. Below each: rows x' in pictures['blocks'].caption
    assert '(squared mean gradient of the loss)' in pictures['map_sensitivity'].caption
