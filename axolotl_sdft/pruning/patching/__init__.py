"""The linear patch at a cut: one projection takes over, as well as a linear map can, what the removed layers did.

``linear_map`` finds the projection that a map can be folded into, or says why there is none, and solves for the map.
``fit`` fits on calibration text and decides on held-out text (``cut_model``) whether it is worth it, ``ranking`` tries
blocks out, and ``apply`` writes the one tensor. Others use ``fit_patch`` (fit), ``LayerPatch`` and ``CutPatch``
(record) and ``patched_tensors`` (apply).
"""
