"""A blocking client of ``upt.v1.Admin``, for operators' programs without torch."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Self

from upt_protos.v1 import admin_pb2 as pb
from upt_protos.v1 import admin_pb2_grpc
from upt_server.channels import open_channel, our_errors
from upt_server.tls import ClientTls

DEFAULT_TARGET = "127.0.0.1:8002"
_TIMEOUT_S = 60.0  # for the largest adapters on slow disks


class AdminClient:
    """Loads, pins and unloads adapters; its token needs the scope ``admin``.

    A context manager. Every method raises the error that the server met, ``Forbidden`` for other
    tokens, and ``TimeoutError`` where no answer came in time. References are as the user writes
    them.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None,
        timeout_s: float = _TIMEOUT_S,
        tls: ClientTls | None = None,
    ) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._channel = open_channel(target, tls, token)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def load(self, adapter: str) -> pb.ResidentAdapter:
        """Load an adapter; it may be evicted again."""
        with self._our_errors():
            request = pb.LoadRequest(adapter=adapter)
            return self._stub.Load(request, timeout=self._timeout_s).adapter

    def unload(self, adapter: str) -> pb.UnloadResponse:
        """Drop an adapter from memory, and its pin."""
        with self._our_errors():
            return self._stub.Unload(pb.UnloadRequest(adapter=adapter), timeout=self._timeout_s)

    def pin(self, adapter: str) -> pb.ResidentAdapter:
        """Load an adapter and keep it until it is unloaded."""
        with self._our_errors():
            request = pb.PinRequest(adapter=adapter)
            return self._stub.Pin(request, timeout=self._timeout_s).adapter

    def preload(self, adapters: Iterable[str]) -> tuple[pb.ResidentAdapter, ...]:
        """Pin adapters in their order, up to the first that cannot be loaded."""
        with self._our_errors():
            request = pb.PreloadRequest(adapters=adapters)
            return tuple(self._stub.Preload(request, timeout=self._timeout_s).adapters)

    def resident(self) -> tuple[pb.ResidentAdapter, ...]:
        """List what is in memory, the least recently used first."""
        with self._our_errors():
            request = pb.ListResidentRequest()
            return tuple(self._stub.ListResident(request, timeout=self._timeout_s).adapters)

    def status(self) -> pb.Status:
        """Say how the server is."""
        with self._our_errors():
            return self._stub.GetStatus(pb.GetStatusRequest(), timeout=self._timeout_s)

    def drain(self) -> None:
        """Make the server stop as SIGTERM does; the answer comes before it has stopped."""
        with self._our_errors():
            self._stub.Drain(pb.DrainRequest(), timeout=self._timeout_s)

    def _our_errors(self) -> AbstractContextManager[None]:
        port = "--admin-port"
        return our_errors(self._target, command=f"upt-server run {port}", port=port)
