"""Generates with a ``vllm serve`` that is started for one command. ``backend`` is the way in, ``server`` the child
process that holds the GPUs.
"""
