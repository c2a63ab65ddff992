"""Trainers that distil while they train.

``trainers`` and ``trl_trainer`` hold those for transformers, Axolotl and TRL. Their mixins are ``mixin`` (DynSDPB) and
``logit_mixin`` (the seed model as teacher), both on top of ``student``. ``losses`` has the divergences, computed chunk
by chunk; ``teachers`` the predictions that are distilled from; ``noise`` tells dropout from drift; ``batching`` joins
mini-batches; ``support`` refuses what can't be distilled.
"""
