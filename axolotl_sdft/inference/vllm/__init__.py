"""Generates with vLLM on this machine's GPUs. ``backend`` is the way in, ``engine`` the child process that holds the
GPUs.
"""
