"""Tests of ``cdra_mm.core``, written against its contract and the paper."""
