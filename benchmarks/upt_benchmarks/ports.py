"""Ports of loopback for servers that are to come back on theirs."""

import random
import socket

_LOW_PORTS = (20_000, 30_000)  # no system gives these to whoever connects, so none is taken between


def free_port() -> int:
    """Return one that nobody listens on.

    Raises:
        OSError: there is none.
    """
    ports = list(range(*_LOW_PORTS))
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not _is_taken(probe, port):
                return port
    raise OSError("no port is free")


def _is_taken(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return True
    return False
