"""Trainers that distil while they train.

``trainers`` and ``trl_trainer`` hold those for transformers, Axolotl and TRL; ``mixin`` is what they share. ``losses``
has the divergences, computed chunk by chunk; ``teachers`` the predictions that are distilled from; ``support`` what is
refused.
"""
