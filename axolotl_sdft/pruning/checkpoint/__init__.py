"""Checkpoints on disk without some of their layers: config rules, tensor files, quantization settings, provenance.

``cut`` is the way in. Weights move from file to file as bytes; no tensor is built.
"""
