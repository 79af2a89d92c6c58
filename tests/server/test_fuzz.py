from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from grpc import StatusCode

from upt_protos.v1 import inference_pb2 as pb
from upt_server.runner import TorchRunner
from upt_testing.fuzz import fuzz
from upt_testing.serving import make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store

Stream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
STREAM = "/upt.v1.Inference/PredictStream"


async def test_300_messages_that_no_client_would_send_do_no_harm(tmp_path: Path) -> None:
    report = await fuzz(tmp_path, messages=300, seed=1)
    assert not report.faults
    assert report.ended.total() == 300
    for way in ("upt.v1.Inference", "inference.GRPCInferenceService"):
        assert {f"{way} OK", f"{way} INVALID_ARGUMENT"} <= report.ended.keys()
    assert {"HTTP 200", "HTTP 400", "HTTP 404"} <= report.ended.keys()


async def test_a_stream_ends_at_bytes_that_are_no_message_and_answers_what_came_before(
    store: Store, backbone: Backbone, runner: TorchRunner
) -> None:
    whole = pb.StreamRequest(
        id="1", request=pb.PredictRequest(inputs=[pb.Input(adapter="sst2", texts=["a film"])])
    ).SerializeToString()
    async with (
        serving(make_settings(store.root), backbone, runner) as served,
        grpc.aio.insecure_channel(served.target) as channel,
    ):
        stream: Stream = channel.stream_stream(STREAM)
        answers = aiter(stream(iter([whole, b"\xff"])))
        assert pb.StreamResponse.FromString(await anext(answers)).HasField("response")
        with pytest.raises(grpc.aio.AioRpcError, match="expected a message of this call") as caught:
            await anext(answers)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
