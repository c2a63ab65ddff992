"""Layer pruning: score the decoder layers, plan which to remove (a pure function), write the smaller checkpoint.

``pipeline`` is the way in. ``general_answers`` lets the seed model write calibration text. ``scoring`` runs the model,
``planning`` decides and explains, ``patching`` fits what takes over for the removed layers, ``checkpoint`` reads and
writes files.
"""
