"""The linear patch at a cut: one projection takes over, as well as a linear map can, what the removed layers did.

``projection`` finds the tensor that a map can be folded into, or says why there is none. ``fit`` fits the map on
calibration text, ``choice`` decides on held-out text whether it is worth it, and ``apply`` writes the one tensor.
Others use ``fit_patch`` (fit), ``LayerPatch`` and ``CutPatch`` (record) and ``patched_tensors`` (apply).
"""
