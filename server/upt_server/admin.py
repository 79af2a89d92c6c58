"""``upt.v1.Admin``: what operators do to a running server. Translation only.

Who may call is decided before, by the guard of the port it listens on.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal, TypeAlias

import grpc

from upt_protos.v1 import admin_pb2 as pb
from upt_protos.v1 import admin_pb2_grpc
from upt_server.calls import ending_with_a_status
from upt_server.engine import Engine
from upt_server.residency import Resident
from upt_zoo.local.store import StoredAdapter
from upt_zoo.references import Reference

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_STATES: "Mapping[Literal['starting', 'open', 'draining'], pb.State.ValueType]" = {
    "starting": pb.STATE_STARTING,
    "open": pb.STATE_OPEN,
    "draining": pb.STATE_DRAINING,
}


class AdminService(admin_pb2_grpc.AdminServicer):
    """Serves ``upt.v1.Admin``; it sets ``stop`` where the server shall stop."""

    def __init__(self, engine: Engine, version: str, stop: asyncio.Event) -> None:
        self._engine, self._version, self._stop = engine, version, stop

    async def Load(self, request: pb.LoadRequest, context: _Context) -> pb.LoadResponse:
        """Load an adapter; it may be evicted again."""
        async with ending_with_a_status(context):
            stored = await self._engine.lifecycle.load(Reference.parse(request.adapter))
            return pb.LoadResponse(adapter=self._describe(stored))

    async def Unload(self, request: pb.UnloadRequest, context: _Context) -> pb.UnloadResponse:
        """Drop an adapter from memory, and its pin."""
        async with ending_with_a_status(context):
            stored = await self._engine.lifecycle.unload(Reference.parse(request.adapter))
            return pb.UnloadResponse(adapter=stored.reference, digest=stored.digest)

    async def Pin(self, request: pb.PinRequest, context: _Context) -> pb.PinResponse:
        """Load an adapter and keep it."""
        async with ending_with_a_status(context):
            stored = await self._engine.lifecycle.pin(Reference.parse(request.adapter))
            return pb.PinResponse(adapter=self._describe(stored))

    async def Preload(self, request: pb.PreloadRequest, context: _Context) -> pb.PreloadResponse:
        """Pin many adapters."""
        async with ending_with_a_status(context):
            references = [Reference.parse(adapter) for adapter in request.adapters]
            pinned = await self._engine.lifecycle.preload(references)
            return pb.PreloadResponse(adapters=map(self._describe, pinned))

    async def ListResident(
        self, request: pb.ListResidentRequest, context: _Context
    ) -> pb.ListResidentResponse:
        """List what is in memory."""
        async with ending_with_a_status(context):
            return pb.ListResidentResponse(adapters=map(_write, self._engine.lifecycle.resident()))

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.Status:
        """Say how the server is."""
        async with ending_with_a_status(context):
            status = self._engine.status()
            return pb.Status(
                version=self._version,
                state=_STATES[status.state],
                backbone_digest=status.backbone_digest,
                precision=status.precision,
                calls=status.calls,
                queue_rows=status.queue_rows,
                adapter_bytes=status.adapter_bytes,
                max_adapter_bytes=status.max_adapter_bytes,
            )

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:
        """Begin to stop."""
        async with ending_with_a_status(context):
            self._engine.access.check_all_adapters()
            self._stop.set()
            return pb.DrainResponse()

    def _describe(self, stored: StoredAdapter) -> pb.ResidentAdapter:
        """Describe an adapter just loaded, which somebody else may have unloaded already."""
        gone = Resident(stored=stored, size_bytes=0, leases=0, is_pinned=False)
        found = (each for each in self._engine.lifecycle.resident() if each.stored == stored)
        return _write(next(found, gone))


def _write(resident: Resident) -> pb.ResidentAdapter:
    return pb.ResidentAdapter(
        adapter=resident.stored.reference,
        digest=resident.stored.digest,
        size_bytes=resident.size_bytes,
        leases=resident.leases,
        pinned=resident.is_pinned,
    )
