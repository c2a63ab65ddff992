"""Ports for processes that train together."""

import contextlib
import os
import socket


def free_port() -> int:
    """Return a port that nothing is given by chance before the ranks listen there, as those of the upper range are."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
