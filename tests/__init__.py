"""Tests of cdra_mm: the folders mirror the package; ``reference`` holds slow, obvious oracles."""
