"""Ray's way to a replica: by the adapter that a call asks for first, and by load.

The decision is ``upt_server.affinity``'s; this tells it what Ray knows.
"""

import pickle
from dataclasses import dataclass

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from upt_protos.oip import open_inference_pb2
from upt_protos.v1 import inference_pb2
from upt_server.affinity import AffinityRouter
from upt_zoo.errors import InvalidReference
from upt_zoo.references import Reference


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    calls: int


class AdapterRouter(RequestRouter):
    """Chooses the replica that has the adapter in memory, spilling over by load."""

    def initialize_state(self, *, slots: int) -> None:  # type: ignore[override]  # what we configure
        """Take the ``request_router_kwargs``: ``slots`` adapters fit into a replica's memory."""
        self._affinity = AffinityRouter(slots)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replica to ask, and the others should it be full."""
        up = [_Place(each.replica_id.unique_id, self._calls(each)) for each in candidate_replicas]
        adapter = adapter_of(pending_request) if pending_request else ""
        if not adapter:  # whichever is the least busy: Ray looks at what it gets in one list
            return [candidate_replicas]
        chosen = self._affinity.choose(adapter, up)
        others = [*candidate_replicas[:chosen], *candidate_replicas[chosen + 1 :]]
        return [[candidate_replicas[chosen]], others]

    def _calls(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def adapter_of(call: PendingRequest) -> str:
    """Return the name of the adapter that a call asks for first; empty where that is not known.

    A caller may say it in ``multiplexed_model_id`` (over HTTP the header
    ``serve_multiplexed_model_id``). Else it is read from the message of a call over gRPC; streams
    and bodies over HTTP are read by the replica only.
    """
    named = call.metadata.multiplexed_model_id
    if not named and call.metadata.is_grpc_request:
        # what the proxy, this process, has just pickled for the replica
        named = _first_in(getattr(pickle.loads(call.args[0]), "user_request_proto", None))
    try:
        return Reference.parse(named).name
    except InvalidReference:  # which the replica says
        return ""


def _first_in(message: object) -> str:
    match message:
        case inference_pb2.PredictRequest(inputs=[first, *_]):
            return first.adapters[0] if first.adapters else first.adapter
        case open_inference_pb2.ModelInferRequest(model_name=name):
            return name
    return ""
