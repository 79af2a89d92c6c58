"""Defaults that the command line shares with servers that are started otherwise."""

from pathlib import Path

# with MiniLM on two cores a batch of 2,048 tokens takes a third of a second; larger ones bring a
# tenth more throughput; a full queue of 65,536 tokens is worked off in ten seconds
BATCH_TOKENS, QUEUE_TOKENS = 2048, 65_536
ADAPTER_MEMORY_MB = 2048
ADAPTER_LABELS = 100
HOST, GRPC_PORT, HTTP_PORT = "127.0.0.1", 8001, 8000


def runner_cache_file() -> Path:
    """Return the user's own file that remembers the fastest runner."""
    import platformdirs  # here, since commands that start no server need none of it

    return platformdirs.user_cache_path("upt", appauthor=False) / "runners.json"
