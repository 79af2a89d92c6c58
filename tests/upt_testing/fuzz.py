"""Sends a server messages that no client would, and looks whether it minds.

    PYTHONPATH=tests python -m upt_testing.fuzz [--messages 100000] [--seed 0] [--verbose]

The server runs in this process, on a tiny backbone with an adapter for each kind of head; calls go
over loopback by gRPC (``upt.v1``, the Open Inference Protocol, health, reflection) and HTTP.
Messages are random bytes, messages of random content, and whole ones of which bytes or fields are
changed. No call may hang, end as a fault of the server or hurt it: afterwards the same question
gets the same answer. Exit code 1 where that does not hold. It prints JSON.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.json_format import MessageToJson, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.v1 import inference_pb2 as pb
from upt_server.client import AsyncClient
from upt_server.inputs import Limits
from upt_server.runner_choice import load_runner
from upt_server.statuses import FAULT
from upt_testing.adapters import CLASSIFICATION, EMBEDDING, MULTI_LABEL, REGRESSION, SPAN, TOKENS
from upt_testing.backbones import write_tiny_backbone
from upt_testing.mutations import Mutations
from upt_testing.serving import Publisher, Served, make_settings, serving
from upt_zoo.local.store import Store

HEADS = {
    "sst2": CLASSIFICATION,
    "topics": MULTI_LABEL,
    "stsb": REGRESSION,
    "squad": SPAN,
    "people": TOKENS,
    "vectors": EMBEDDING,
}
_Call: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
_BAD = {
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.DATA_LOSS,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAVAILABLE,
}
# what the client says by itself where the server has ended a call into which it still writes
_LATE_WRITE = "Internal error from Core"
_PATIENCE_S = 20.0  # far beyond what a call takes
_AT_ONCE = 16
_QUESTION = ("sst2", "a gripping film")
_HTTP_SHARE = 1 / 3
_METHODS = [
    method
    for file, name in (
        (pb.DESCRIPTOR, "Inference"),
        (oip.DESCRIPTOR, "GRPCInferenceService"),
        (health_pb2.DESCRIPTOR, "Health"),
        (reflection_pb2.DESCRIPTOR, "ServerReflection"),
    )
    for method in file.services_by_name[name].methods
    if method.full_name != "grpc.health.v1.Health.Watch"  # it never ends
]


def _tensors(**fields: str) -> list[oip.ModelInferRequest.InferInputTensor]:
    return [
        oip.ModelInferRequest.InferInputTensor(
            name=name,
            datatype="BYTES",
            shape=[1],
            contents=oip.InferTensorContents(bytes_contents=[text.encode()]),
        )
        for name, text in fields.items()
    ]


# by the full name of their type
_WHOLE: dict[str, list[Message]] = {
    "upt.v1.PredictRequest": [
        pb.PredictRequest(inputs=[pb.Input(adapter="sst2", texts=["a gripping film"])]),
        pb.PredictRequest(inputs=[pb.Input(adapter="squad", texts=["who ?", "a man wrote it ."])]),
        pb.PredictRequest(
            inputs=[
                pb.Input(
                    adapters=["stsb", "topics"],
                    texts=["a dull book"],
                    options=pb.Options(top_k=1, logits=True, max_tokens=16),
                )
            ]
        ),
    ],
    "upt.v1.StreamRequest": [
        pb.StreamRequest(
            id="1",
            request=pb.PredictRequest(inputs=[pb.Input(adapter="sst2", texts=["a film"])]),
        )
    ],
    "upt.v1.GetAdapterRequest": [pb.GetAdapterRequest(adapter="sst2")],
    "inference.ModelInferRequest": [
        oip.ModelInferRequest(model_name="sst2", inputs=_tensors(text="a gripping film")),
        oip.ModelInferRequest(
            model_name="squad", inputs=_tensors(question="who ?", context="a man wrote it .")
        ),
    ],
    "inference.ModelMetadataRequest": [oip.ModelMetadataRequest(name="sst2", version="1.0.0")],
}
# where a path's parts are to be filled in
_PATHS = (
    ("POST", "/v1/predict"),
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/{}"),
    ("GET", "/v2"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}/config"),
    ("GET", "/v2/models/{}/versions/{}/stats"),
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/{}/versions/{}/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/{}/load"),
    ("POST", "/v2/repository/models/{}/unload"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
)


@dataclass(slots=True)
class Report:
    """How calls ended, by protocol and status, and what should not have been."""

    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Fuzz, print."""
    parser = argparse.ArgumentParser(description="Send a server messages that no client would.")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="show the server's log")
    arguments = parser.parse_args()
    if not arguments.verbose:
        logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="upt-fuzz-") as folder:
        report = asyncio.run(fuzz(Path(folder), arguments.messages, arguments.seed))
    ended = dict(report.ended.most_common())
    print(json.dumps({"ended": ended, "faults": report.faults[:100]}, indent=2))  # noqa: T201
    return 1 if report.faults else 0


async def fuzz(folder: Path, messages: int, seed: int) -> Report:
    """Send so many messages to a server of its own."""
    backbone = write_tiny_backbone(folder / "backbone", heads=2)  # a size that the kernel takes
    publish = Publisher(store=Store(folder / "home"), backbone=backbone)
    for number, (name, head) in enumerate(HEADS.items()):
        publish(name, head, seed=number)
    runner = load_runner(backbone, "exact", wanted="auto", threads=1, cache=None)
    settings = make_settings(
        folder / "home", has_model_control=True, limits=Limits(timeout_s=_PATIENCE_S / 2)
    )
    report = Report()
    async with serving(settings, backbone, runner) as served, AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.target))
        client = await stack.enter_async_context(AsyncClient(served.target))
        before = (await client.predict(*_QUESTION)).answer
        fuzzer = Fuzzer(served, channel, random.Random(seed), report)
        left = iter(range(messages))
        await asyncio.gather(*(fuzzer.send(left) for _ in range(_AT_ONCE)))
        if (await client.predict(*_QUESTION)).answer != before or not served.engine.gate.is_open:
            report.faults.append("the server is not what it was")
        if served.engine.status().queue_rows or served.engine.gate.inside:
            report.faults.append("something is left at work")
        if leased := [each for each in served.engine.lifecycle.resident() if each.leases]:
            report.faults.append(f"{len(leased)} adapters are left leased")
    return report


class Fuzzer:
    """Sends what it makes up, by one way or another."""

    def __init__(
        self, served: Served, channel: grpc.aio.Channel, source: random.Random, report: Report
    ) -> None:
        self._served, self._channel, self._random = served, channel, source
        self._report, self._mutations = report, Mutations(source, names=tuple(HEADS))

    async def send(self, left: Iterator[int]) -> None:
        """Send messages until none are left; several may take from the same ones."""
        for _ in left:
            if self._random.random() < _HTTP_SHARE:
                await self._send_by_http()
            else:
                await self._send_by_grpc(self._random.choice(_METHODS))

    async def _send_by_grpc(self, method: MethodDescriptor) -> None:
        service = method.containing_service.full_name
        call: _Call = self._channel.stream_stream(f"/{service}/{method.name}")
        count = self._random.randint(0, 4) if method.client_streaming else 1
        messages = [self._message(method) for _ in range(count)]
        answers: list[bytes] = []
        code, details = StatusCode.OK, ""
        try:
            async for answer in call(iter(messages), timeout=_PATIENCE_S):
                answers.append(answer)  # noqa: PERF401 - what comes before an error counts too
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), str(error.details())
        how = "late write" if details == _LATE_WRITE else code.name
        self._report.ended[f"{service} {how}"] += 1
        is_fault = any(FAULT.encode() in answer for answer in answers)
        if (code in _BAD and how == code.name) or is_fault:
            said = f"{method.full_name} {code.name} {details}: {messages!r}"
            self._report.faults.append(said[:2000])

    async def _send_by_http(self) -> None:
        verb, path = self._random.choice(_PATHS)
        parts = (quote(self._mutations.string(), safe=":@") for _ in range(path.count("{}")))
        request = self._http_request(verb, path.format(*parts))
        is_spoilt = self._random.random() < 0.1
        if is_spoilt:  # it may announce more than it brings, and is hung up on
            request = self._mutations.spoil(request)
        line = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2 if is_spoilt else _PATIENCE_S):
                line = await self._ask_by_http(request)
        self._report.ended[f"HTTP {line[9:12] or 'no answer'}"] += 1
        if line[9:10] == "5" or not (line or is_spoilt):
            self._report.faults.append(f"HTTP {line}: {request!r}"[:2000])

    def _http_request(self, verb: str, path: str) -> bytes:
        body = self._body(path) if verb == "POST" else b""
        if self._random.random() < 0.05:
            verb = self._random.choice(("PUT", "HEAD", "DELETE", "OPTIONS", "get", "X"))
        if self._random.random() < 0.05:
            path = f"/{quote(self._mutations.string())}"
        headers = [f"{verb} {path} HTTP/1.1", "Host: x", "Connection: close"]
        headers.append(f"Content-Length: {len(body)}")
        if self._random.random() < 0.2:
            name = self._random.choice(
                ("Inference-Header-Content-Length", "Content-Type", "Accept", "traceparent")
            )
            value = self._mutations.string().replace("\r\n", " ").replace("\0", "")
            headers.append(f"{name}: {value[:200]}")
        return "\r\n".join([*headers, "", ""]).encode() + body

    async def _ask_by_http(self, request: bytes) -> str:
        """Return the answer's first line; nothing where the server hangs up."""
        host, _, port = self._served.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            return (await reader.readline()).decode("latin-1").strip()
        except ConnectionError:
            return ""
        finally:
            writer.close()

    def _message(self, method: MethodDescriptor) -> bytes:
        if self._random.random() < 0.1:
            return self._mutations.data()
        made = self._made(method.input_type)
        data: bytes = made.SerializeToString()
        return self._mutations.spoil(data) if self._random.random() < 0.3 else data

    def _made(self, kind: Descriptor) -> Message:
        """Make a message: whole, with a field changed, or of anything."""
        if kind.full_name not in _WHOLE or self._random.random() < 0.3:
            return self._mutations.fill(GetMessageClass(kind)())
        message = GetMessageClass(kind)()
        message.CopyFrom(self._random.choice(_WHOLE[kind.full_name]))
        for _ in range(self._random.randint(0, 3)):
            self._mutations.change(message)
        return message

    def _body(self, path: str) -> bytes:
        if self._random.random() < 0.1:
            return self._mutations.data()
        kind = oip.ModelInferRequest if "infer" in path else pb.PredictRequest
        message = self._made(kind.DESCRIPTOR)
        try:
            body = MessageToJson(message, preserving_proto_field_name=True)
        except SerializeToJsonError:  # numbers that JSON has not
            body = "{}"
        if "infer" in path:  # the protocol's JSON has shorter names
            body = body.replace('"contents"', '"data"').replace('"bytes_contents"', '"data"')
        return (
            self._mutations.spoil(body.encode()) if self._random.random() < 0.3 else body.encode()
        )


if __name__ == "__main__":
    sys.exit(main())
