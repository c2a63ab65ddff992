"""Measure the layers, decide which go (a pure function), write the smaller checkpoint."""
