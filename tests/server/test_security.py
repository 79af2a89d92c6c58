"""Every call of every protocol without, with wrong and with insufficient credentials."""

import asyncio
import importlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message as HttpMessage
from starlette.types import Receive, Scope, Send

from upt_protos.oip import open_inference_pb2 as oip
from upt_protos.v1 import admin_pb2, inference_pb2
from upt_server import http_calls, patience
from upt_server.access import callers
from upt_server.access.callers import Access
from upt_server.access.http_guard import HttpGuard
from upt_server.access.scopes import GRPC_NEEDS, need_of_path
from upt_server.access.tokens import Token, add_token
from upt_server.client import AsyncClient
from upt_server.runner import TorchRunner
from upt_server.settings import AdminAddress
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.errors import (
    AdapterNotFound,
    Forbidden,
    InvalidInput,
    Overloaded,
    Unauthenticated,
)
from upt_zoo.local.store import Store

Raw: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
SCOPES = ("predict", "metadata", "admin")
DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
WRONG = "upt_" + "x" * 43
TIMEOUT_S = 20
# what gRPC's client says, once in 500 calls, if its message is on its way when the call is refused
LOST_RACE = "Internal error from Core"
PROTOS = Path(inference_pb2.__file__).parents[1]


def files() -> Iterator[FileDescriptor]:
    """Yield the descriptors of every .proto file that a server of ours may serve."""
    for file in PROTOS.rglob("*_pb2.py"):
        module = ".".join(file.relative_to(PROTOS.parent).with_suffix("").parts)
        yield importlib.import_module(module).DESCRIPTOR
    yield health_pb2.DESCRIPTOR
    yield reflection_pb2.DESCRIPTOR


METHODS = sorted(
    f"/{service.full_name}/{method.name}"
    for file in files()
    for service in file.services_by_name.values()
    for method in service.methods
)
ADMIN_METHODS = [method for method in METHODS if method.startswith("/upt.v1.Admin/")]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def infer_of(model: str, text: str) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(
        name="sentence",
        datatype="BYTES",
        shape=[1],
        contents=oip.InferTensorContents(bytes_contents=[text.encode()]),
    )
    return oip.ModelInferRequest(model_name=model, inputs=[tensor])


# one request for the adapter cola for each RPC that names adapters; the others name none
FOR_COLA: dict[str, Message] = {
    "/upt.v1.Inference/Predict": inference_pb2.PredictRequest(
        inputs=[inference_pb2.Input(adapter="cola", texts=["a film"])]
    ),
    "/upt.v1.Inference/GetAdapter": inference_pb2.GetAdapterRequest(adapter="cola:1.0.0"),
    "/upt.v1.Admin/Load": admin_pb2.LoadRequest(adapter="cola"),
    "/upt.v1.Admin/Unload": admin_pb2.UnloadRequest(adapter="cola"),
    "/upt.v1.Admin/Pin": admin_pb2.PinRequest(adapter="cola"),
    "/upt.v1.Admin/Preload": admin_pb2.PreloadRequest(adapters=["sst2", "cola"]),
    "/upt.v1.Admin/Drain": admin_pb2.DrainRequest(),
    "/inference.GRPCInferenceService/ModelReady": oip.ModelReadyRequest(name="cola"),
    "/inference.GRPCInferenceService/ModelMetadata": oip.ModelMetadataRequest(name="cola"),
    "/inference.GRPCInferenceService/ModelConfig": oip.ModelConfigRequest(name="cola"),
    "/inference.GRPCInferenceService/ModelStatistics": oip.ModelStatisticsRequest(name="cola"),
    "/inference.GRPCInferenceService/ModelInfer": infer_of("cola", "a film"),
    "/inference.GRPCInferenceService/RepositoryModelLoad": oip.RepositoryModelLoadRequest(
        model_name="cola"
    ),
    "/inference.GRPCInferenceService/RepositoryModelUnload": oip.RepositoryModelUnloadRequest(
        model_name="cola"
    ),
}
# these show what the caller may ask, name no adapter, or answer each request of a stream
NAME_NONE = {
    REFLECTION,
    "/grpc.health.v1.Health/Watch",
    "/upt.v1.Inference/ListAdapters",
    "/upt.v1.Inference/PredictStream",
    "/upt.v1.Admin/ListResident",
    "/upt.v1.Admin/GetStatus",
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/RepositoryIndex",
    "/inference.GRPCInferenceService/ModelStreamInfer",
}


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """Tokens: one of each scope, ``all`` of them, ``sst2`` for that adapter alone, ``slow``."""
    file = tmp_path / "tokens.json"
    wanted: dict[str, dict[str, object]] = {scope: {"scopes": (scope,)} for scope in SCOPES}
    wanted["all"] = {"scopes": SCOPES}
    wanted["sst2"] = {"scopes": SCOPES, "adapters": ("sst2",)}
    wanted["slow"] = {"scopes": SCOPES, "requests_per_second": 0.001}
    wanted["small"] = {"scopes": SCOPES, "queued_tokens": 20}
    made = {}
    for name, fields in wanted.items():
        token, made[name] = Token.create(name=name, **fields)
        add_token(file, token)
    return made


@pytest.fixture
async def served(
    store: Store, backbone: Backbone, runner: TorchRunner, secrets: dict[str, str], tmp_path: Path
) -> AsyncIterator[Served]:
    settings = make_settings(
        store.root,
        tokens=tmp_path / "tokens.json",
        admin=AdminAddress(host="127.0.0.1", port=0),
        has_model_control=True,
    )
    async with serving(settings, backbone, runner) as started:
        yield started


def port_of(served: Served, method: str) -> str:
    return served.admin if method in ADMIN_METHODS else served.target


async def code_of(
    target: str, method: str, secret: str | None, message: Message | None = None
) -> grpc.StatusCode:
    """Call with one message; a first answer counts as OK, since some streams never end."""
    metadata = [] if secret is None else [("authorization", f"Bearer {secret}")]
    data = message.SerializeToString() if message else b""

    async def requests() -> AsyncIterator[bytes]:
        yield data

    async with grpc.aio.insecure_channel(target) as channel:
        ask: Raw = channel.stream_stream(method)
        call = ask(requests(), metadata=metadata, timeout=TIMEOUT_S)
        try:
            async for _ in call:
                return grpc.StatusCode.OK
            return await call.code()
        except grpc.aio.AioRpcError as error:
            if error.details() != LOST_RACE:
                return error.code()
    return await code_of(target, method, secret, message)


def test_the_table_of_scopes_names_every_rpc_that_there_is() -> None:
    assert set(METHODS) == set(GRPC_NEEDS)


def test_every_rpc_is_asked_for_a_forbidden_adapter_or_names_none() -> None:
    guarded = {method for method, need in GRPC_NEEDS.items() if need != "open"}
    assert guarded == {*FOR_COLA, *NAME_NONE}


async def test_reflection_tells_of_no_service_that_is_not_tested(
    served: Served, secrets: dict[str, str]
) -> None:
    found = set()
    for target in (served.target, served.admin):
        async with grpc.aio.insecure_channel(target) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            metadata = [("authorization", f"Bearer {secrets['all']}")]
            async for reply in stub.ServerReflectionInfo(iter([request]), metadata=metadata):
                found |= {each.name for each in reply.list_services_response.service}
    assert found == {method.split("/")[1] for method in METHODS}


async def test_every_rpc_needs_its_scope_and_no_other(
    served: Served, secrets: dict[str, str]
) -> None:
    for method, need in GRPC_NEEDS.items():
        if method == "/upt.v1.Admin/Drain":
            continue  # the next test's
        target = port_of(served, method)
        for secret in (None, WRONG, secrets["all"] + "x", ""):
            code = await code_of(target, method, secret)
            assert (code in DENIED) == (need != "open"), (method, code)
            assert code is not grpc.StatusCode.PERMISSION_DENIED
        for scope in SCOPES:
            code = await code_of(target, method, secrets[scope])
            is_denied = need not in ("open", scope)
            assert (code is grpc.StatusCode.PERMISSION_DENIED) == is_denied, (method, scope, code)
            assert code not in DENIED - {grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Watch",
        "/upt.v1.Inference/PredictStream",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ],
)
async def test_a_token_has_so_many_streams_open_and_no_more(
    served: Served, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(callers, "_MAX_STREAMS", 1)
    watch = "/grpc.health.v1.Health/Watch"
    metadata = [("authorization", f"Bearer {secrets['all']}")]
    async with grpc.aio.insecure_channel(served.target) as channel:
        ask: Raw = channel.stream_stream(watch)
        call = ask(iter([b""]), metadata=metadata, timeout=TIMEOUT_S)
        assert await call.read() is not grpc.aio.EOF  # so it is open
        code = await code_of(served.target, method, secrets["all"])
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code_of(served.target, watch, secrets["metadata"]) is grpc.StatusCode.OK
        call.cancel()
    async with asyncio.timeout(TIMEOUT_S):  # the server hears of it a little later
        again = (served.target, method, secrets["all"])
        while await code_of(*again) is not grpc.StatusCode.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_only_who_may_do_everything_drains(served: Served, secrets: dict[str, str]) -> None:
    method = "/upt.v1.Admin/Drain"
    for secret in (None, WRONG, "", secrets["admin"] + "x"):
        code = await code_of(served.admin, method, secret)
        assert code is grpc.StatusCode.UNAUTHENTICATED
    for name in ("predict", "metadata", "sst2"):
        code = await code_of(served.admin, method, secrets[name])
        assert code is grpc.StatusCode.PERMISSION_DENIED
    assert not served.server.stop.is_set()
    assert await is_healthy(served, secrets["all"])
    assert await code_of(served.admin, method, secrets["admin"]) is grpc.StatusCode.OK
    assert served.server.stop.is_set()


@pytest.mark.parametrize("method", [*ADMIN_METHODS, REFLECTION, "/upt.v1.Admin/Forgotten"])
async def test_the_port_for_operators_needs_admin_for_whatever_it_is_asked(
    served: Served, secrets: dict[str, str], method: str
) -> None:
    assert await code_of(served.admin, method, None) is grpc.StatusCode.UNAUTHENTICATED
    for name in ("predict", "metadata"):
        code = await code_of(served.admin, method, secrets[name])
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_callers_port_does_not_serve_operators(
    served: Served, secrets: dict[str, str]
) -> None:
    for method in ADMIN_METHODS:
        code = await code_of(served.target, method, secrets["all"])
        assert code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", sorted(FOR_COLA))
async def test_a_token_for_one_adapter_reaches_no_other_by_any_rpc(
    served: Served, secrets: dict[str, str], method: str
) -> None:
    request = FOR_COLA[method]
    code = await code_of(port_of(served, method), method, secrets["sst2"], request)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    if method != "/upt.v1.Admin/Drain":
        code = await code_of(port_of(served, method), method, secrets["all"], request)
        assert code not in DENIED


async def test_a_stream_refuses_each_request_for_another_adapter(
    served: Served, secrets: dict[str, str]
) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        ask = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {secrets['sst2']}")]
        requests = iter([infer_of(name, "a film") for name in ("sst2", "cola", "sst2")])
        answers = [answer.error_message async for answer in ask(requests, metadata=metadata)]
    assert answers[0] == answers[2] == ""
    assert "may not ask the adapter cola" in answers[1]


async def test_our_own_stream_refuses_them_too(served: Served, secrets: dict[str, str]) -> None:
    async with grpc.aio.insecure_channel(served.target) as channel:
        ask = channel.stream_stream(
            "/upt.v1.Inference/PredictStream",
            request_serializer=inference_pb2.StreamRequest.SerializeToString,
            response_deserializer=inference_pb2.StreamResponse.FromString,
        )
        requests = [
            inference_pb2.StreamRequest(
                id=name,
                request=inference_pb2.PredictRequest(
                    inputs=[inference_pb2.Input(adapter=name, texts=["a film"])]
                ),
            )
            for name in ("sst2", "cola")
        ]
        metadata = [("authorization", f"Bearer {secrets['sst2']}")]
        answers = {answer.id: answer async for answer in ask(iter(requests), metadata=metadata)}
    assert answers["sst2"].HasField("response")
    assert answers["cola"].failure.status == "PERMISSION_DENIED"


async def test_a_list_shows_what_the_caller_may_ask(
    served: Served, secrets: dict[str, str]
) -> None:
    async with AsyncClient(served.target, token=secrets["sst2"]) as client:
        assert [each.identity.name for each in await client.adapters()] == ["sst2"]
        assert (await client.predict("sst2", "a film")).adapter.name == "sst2"
        for reference in ("cola", "cola:1.0.0", "nobody"):  # whether or not there is one
            with pytest.raises(Forbidden, match="may not ask"):
                await client.predict(reference, "a film")
        with pytest.raises(Forbidden, match="cola"):
            await client.predict_many([("sst2", ["a film"]), ("cola", ["a film"])])


async def test_anothers_digest_under_an_allowed_name_leads_nowhere(
    served: Served, secrets: dict[str, str], store: Store
) -> None:
    other = next(each for each in store.list() if each.name == "cola").digest
    async with AsyncClient(served.target, token=secrets["sst2"]) as client:
        with pytest.raises(AdapterNotFound, match="no such adapter, version or tag"):
            await client.predict(f"sst2@{other}", "a film")


async def test_the_client_says_who_it_is_or_is_refused(
    served: Served, secrets: dict[str, str]
) -> None:
    for token, kind in ((None, Unauthenticated), (WRONG, Unauthenticated)):
        async with AsyncClient(served.target, token=token) as client:
            with pytest.raises(kind, match="authorization: Bearer"):
                await client.predict("sst2", "a film")
    async with AsyncClient(served.target, token=secrets["metadata"]) as client:
        with pytest.raises(Forbidden, match="scope predict"):
            await client.predict("sst2", "a film")


async def test_over_its_quota_a_caller_is_refused_and_others_are_not(
    served: Served, secrets: dict[str, str]
) -> None:
    async with AsyncClient(served.target, token=secrets["slow"]) as client:
        await client.predict("sst2", "a film")
        with pytest.raises(Overloaded, match="quota of slow") as raised:
            await client.predict("sst2", "a film")
        assert raised.value.retry_after_s > 60
    async with AsyncClient(served.target, token=secrets["small"]) as client:
        await client.predict("sst2", "a film")
        with pytest.raises(InvalidInput, match="this caller may have 20 waiting"):
            await client.predict_many([("sst2", ["a good film"])] * 5)
    async with AsyncClient(served.target, token=secrets["all"]) as client:
        for _ in range(3):
            await client.predict("sst2", "a film")


# HTTP


def routes(served: Served) -> list[tuple[str, str]]:
    """Return verb and path of every route, its parameters filled in."""
    application = served.server._http.config.app
    assert isinstance(application, Starlette)
    found = []
    for route in application.routes:
        assert isinstance(route, Route)
        path = route.path
        while "{" in path:
            path = path[: path.index("{")] + "cola" + path[path.index("}") + 1 :]
        found += [(verb, path) for verb in sorted(route.methods or ()) if verb != "HEAD"]
    return found


async def ask(
    served: Served,
    verb: str,
    path: str,
    secret: str | None,
    data: bytes | None = None,
    *,
    origin: str | None = None,
) -> tuple[int, dict[str, str], str]:
    request = Request(f"http://{served.http}{path}", method=verb)
    if verb == "POST":
        request.data = data or b"{}"
    if secret is not None:
        request.add_header("authorization", f"Bearer {secret}")
    if origin is not None:
        request.add_header("origin", origin)

    def fetch() -> tuple[int, dict[str, str], str]:
        try:
            with urlopen(request, timeout=TIMEOUT_S) as response:
                return response.status, dict(response.headers), response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_every_path_needs_its_scope_and_no_other(
    served: Served, secrets: dict[str, str]
) -> None:
    paths = routes(served)
    assert ("POST", "/v1/predict") in paths
    for verb, path in [*paths, ("GET", "/nowhere"), ("DELETE", "/v1/predict")]:
        need = need_of_path(verb, path)
        for secret in (None, WRONG):
            status, headers, _ = await ask(served, verb, path, secret)
            assert (status == 401) == (need != "open"), (verb, path, status)
            assert (headers.get("www-authenticate") == "Bearer") == (status == 401)
        for scope in SCOPES:
            status, _, _ = await ask(served, verb, path, secrets[scope])
            assert (status == 403) == (need not in ("open", scope)), (verb, path, scope, status)
            assert status != 401


async def test_what_names_one_adapter_or_all_is_refused_over_http_too(
    served: Served, secrets: dict[str, str]
) -> None:
    body = json.dumps({"inputs": [{"adapter": "cola", "texts": ["a film"]}]}).encode()
    for verb, path in (("POST", "/v1/predict"), ("GET", "/v1/adapters/cola"), ("GET", "/metrics")):
        assert (await ask(served, verb, path, secrets["sst2"], body))[0] == 403
        assert (await ask(served, verb, path, secrets["all"], body))[0] == 200
    status, _, text = await ask(served, "GET", "/v1/adapters", secrets["sst2"])
    assert status == 200
    assert "cola" not in text


async def test_no_error_names_an_adapter_that_the_caller_may_not_ask(
    served: Served, secrets: dict[str, str], tmp_path: Path, store: Store
) -> None:
    # spelt nearly as sst2 and cola are, which are there
    token, near = Token.create(name="near", scopes=SCOPES, adapters=("sst3", "colas"))
    add_token(tmp_path / "tokens.json", token)
    text = json.dumps({"inputs": [{"adapter": "sst3", "texts": ["a film"]}]}).encode()
    asked = [
        ("POST", "/v1/predict", text),
        ("GET", "/v1/adapters/colas", None),
        ("GET", "/page/data/adapters/sst3/1.0.0.json", None),
        ("GET", "/v2/models/colas/ready", None),
        ("POST", "/v2/repository/models/sst3/load", None),
        ("POST", "/v2/repository/models/colas/unload", None),
    ]
    for verb, path, data in asked:
        status, _, said = await ask(served, verb, path, near, data)
        assert (status, "no such adapter" in said, str(store.root) in said) == (404, True, False)
        assert "did you mean" not in said
        _, _, said = await ask(served, verb, path, secrets["all"], data)
        assert "did you mean" in said


async def test_refused_calls_are_counted_by_reason(served: Served, secrets: dict[str, str]) -> None:
    await code_of(served.target, "/upt.v1.Inference/Predict", None)
    await code_of(served.target, "/upt.v1.Inference/Predict", secrets["metadata"])
    await ask(served, "GET", "/v1/adapters", WRONG)
    _, _, text = await ask(served, "GET", "/metrics", secrets["all"])
    assert 'upt_rejected_total{reason="unauthenticated"} 2.0' in text
    assert 'upt_rejected_total{reason="forbidden"} 1.0' in text


# what is switched off, and servers without tokens


async def test_what_is_switched_off_is_not_there(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root, has_reflection=False, has_metrics=False)
    async with serving(settings, backbone, fake) as served:
        assert await code_of(served.target, REFLECTION, None) is grpc.StatusCode.UNIMPLEMENTED
        assert (await ask(served, "GET", "/metrics", None))[0] == 404
        assert (await ask(served, "GET", "/readyz", None))[0] == 200


async def test_a_port_for_operators_needs_tokens(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root, admin=AdminAddress(host="127.0.0.1", port=0))
    with pytest.raises(InvalidInput, match="needs --tokens"):
        async with serving(settings, backbone, fake):
            pass


async def test_without_tokens_nobody_from_elsewhere_loads_or_unloads(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    method = "/inference.GRPCInferenceService/RepositoryModelUnload"
    async with serving(make_settings(store.root, host="0.0.0.0"), backbone, fake) as served:
        code = await code_of(served.target, method, None, FOR_COLA[method])
        assert code is grpc.StatusCode.PERMISSION_DENIED
        predict = "/upt.v1.Inference/Predict"
        code = await code_of(served.target, predict, None, FOR_COLA[predict])
        assert code is grpc.StatusCode.OK


async def test_without_tokens_no_page_in_a_browser_loads_or_unloads(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    settings = make_settings(store.root, has_model_control=True)
    async with serving(settings, backbone, fake) as served:
        path = "/v2/repository/models/cola/load"
        assert (await ask(served, "POST", path, None))[0] == 200
        status, _, text = await ask(served, "POST", path, None, origin="http://evil.example")
        assert (status, "--tokens" in text) == (403, True)
        assert (await ask(served, "GET", "/readyz", None, origin="http://evil.example"))[0] == 200


# the audit log, and what callers write into logs and metrics


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    lines = [each.getMessage() for each in caplog.records if each.name == "upt_server.audit"]
    assert all(len(line.splitlines()) == 1 for line in lines)
    return [json.loads(line) for line in lines]


async def test_every_call_of_an_operator_leaves_one_line(
    served: Served, secrets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    load, preload = "/upt.v1.Admin/Load", "/upt.v1.Admin/Preload"
    await code_of(served.admin, load, secrets["admin"], FOR_COLA[load])
    await code_of(served.admin, load, None, FOR_COLA[load])
    await code_of(served.admin, load, secrets["predict"], FOR_COLA[load])
    await code_of(served.admin, preload, secrets["sst2"], FOR_COLA[preload])
    await code_of(served.admin, load, secrets["admin"], admin_pb2.LoadRequest(adapter="nobody"))
    await ask(served, "POST", "/v2/nowhere", secrets["admin"])
    await ask(served, "POST", "/v2/nowhere", None)
    await code_of(served.target, "/upt.v1.Inference/ListAdapters", secrets["all"])
    lines = audit_lines(caplog)
    assert [(each["who"], each["what"], each["adapters"], each["result"]) for each in lines] == [
        ("admin", load, ["cola"], "OK"),
        ("?", load, [], "UNAUTHENTICATED"),
        ("?", load, [], "PERMISSION_DENIED"),
        ("sst2", preload, ["sst2", "cola"], "PERMISSION_DENIED"),
        ("admin", load, ["nobody"], "NOT_FOUND"),
        ("admin", "POST /v2/nowhere", [], "404"),
        ("?", "POST /v2/nowhere", [], "UNAUTHENTICATED"),
    ]
    assert all(str(each["time"]).endswith("+00:00") for each in lines)
    assert all("127.0.0.1" in str(each["peer"]) for each in lines)


async def test_a_call_of_an_operator_without_a_whole_message_leaves_a_line_too(
    served: Served,
    secrets: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(patience, "_FIRST_MESSAGE_S", 0.3)
    load = "/upt.v1.Admin/Load"
    async with grpc.aio.insecure_channel(served.admin) as channel:
        ask: Raw = channel.stream_stream(load)
        silent = ask(metadata=[("authorization", f"Bearer {secrets['admin']}")])
        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await code_of(served.admin, load, secrets["admin"], five_mib(load))
    assert [(each["who"], each["what"], each["result"]) for each in audit_lines(caplog)] == [
        ("admin", load, "DEADLINE_EXCEEDED"),
        ("admin", load, "CANCELLED"),
    ]


async def test_a_stream_of_an_operator_leaves_one_line(
    served: Served, secrets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(served.admin) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        metadata = [("authorization", f"Bearer {secrets['admin']}")]
        async for _ in stub.ServerReflectionInfo(iter([request]), metadata=metadata):
            pass
    lines = audit_lines(caplog)
    assert [(each["who"], each["what"], each["result"]) for each in lines] == [
        ("admin", REFLECTION, "OK")
    ]


async def test_a_call_of_an_operator_who_leaves_is_audited_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> HttpMessage:
        return {"type": "http.disconnect"}

    async def send(message: HttpMessage) -> None:
        raise AssertionError(message)

    guard = HttpGuard(
        http_calls.LeaverWatch(never), access=Access(), refuse=http_calls.respond_error
    )
    path = "/v2/repository/models/cola/load"
    await guard({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
    lines = audit_lines(caplog)
    assert [(each["what"], each["result"]) for each in lines] == [(f"POST {path}", "CANCELLED")]


EVIL = 'x"} 1\nupt_evil 2\r\n{"who": "root"}\x1b[2J'


async def test_nothing_that_callers_write_forges_a_line(
    served: Served, secrets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await code_of(
        served.admin, "/upt.v1.Admin/Load", secrets["admin"], admin_pb2.LoadRequest(adapter=EVIL)
    )
    await ask(served, "POST", "/v2/%0d%0a%7B%22who%22:%22root%22%7D", secrets["admin"])
    async with AsyncClient(served.target, token=secrets["all"]) as client:
        await client.predict("sst2", EVIL)
        await client.predict("sst2", "a film")
    request = inference_pb2.PredictRequest(inputs=[inference_pb2.Input(adapter=EVIL, texts=[EVIL])])
    await code_of(served.target, "/upt.v1.Inference/Predict", secrets["all"], request)
    infer = "/inference.GRPCInferenceService/ModelInfer"
    await code_of(served.target, infer, secrets["all"], oip.ModelInferRequest(model_name=EVIL))
    assert [each["who"] for each in audit_lines(caplog)] == ["admin", "admin"]
    assert not any(
        "\n" in each.getMessage() or "\x1b" in each.getMessage() for each in caplog.records
    )
    _, _, text = await ask(served, "GET", "/metrics", secrets["all"])
    assert "evil" not in text
    assert 'adapter="sst2"' in text


# too large and too slow


async def is_healthy(served: Served, secret: str) -> bool:
    async with AsyncClient(served.target, token=secret) as client:
        return (await client.predict("sst2", "a film")).adapter.name == "sst2"


def five_mib(method: str) -> Message:
    """Make a request for sst2 whose text, or name, has five MiB."""
    large = "x" * (5 * 1024**2)
    predict = inference_pb2.PredictRequest(
        inputs=[inference_pb2.Input(adapter="sst2", texts=[large])]
    )
    if method == "/upt.v1.Inference/Predict":
        return predict
    if method == "/upt.v1.Inference/PredictStream":
        return inference_pb2.StreamRequest(id="large", request=predict)
    if method == "/upt.v1.Admin/Load":
        return admin_pb2.LoadRequest(adapter=large)
    return infer_of("sst2", large)


@pytest.mark.parametrize(
    "method",
    [
        "/upt.v1.Inference/Predict",
        "/upt.v1.Inference/PredictStream",
        "/upt.v1.Admin/Load",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ],
)
async def test_a_message_that_is_too_large_is_refused_and_the_server_goes_on(
    served: Served, secrets: dict[str, str], method: str
) -> None:
    target, large = port_of(served, method), five_mib(method)
    code = await code_of(target, method, secrets["all"], large)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # without credentials it is not even read
    assert await code_of(target, method, None, large) in {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert await is_healthy(served, secrets["all"])
    if target == served.admin:
        code = await code_of(target, method, secrets["all"], FOR_COLA[method])
        assert code is grpc.StatusCode.OK


async def test_a_message_that_is_too_large_ends_the_stream_that_it_comes_in(
    served: Served, secrets: dict[str, str]
) -> None:
    method = "/upt.v1.Inference/PredictStream"
    given = FOR_COLA["/upt.v1.Inference/Predict"].SerializeToString()
    predict = inference_pb2.PredictRequest.FromString(given)
    small = inference_pb2.StreamRequest(id="small", request=predict).SerializeToString()
    metadata = [("authorization", f"Bearer {secrets['all']}")]
    async with grpc.aio.insecure_channel(served.target) as channel:
        ask: Raw = channel.stream_stream(method)
        call = ask(metadata=metadata, timeout=TIMEOUT_S)
        await call.write(small)
        answer = inference_pb2.StreamResponse.FromString(cast("bytes", await call.read()))
        assert answer.HasField("response")
        await call.write(five_mib(method).SerializeToString())
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await is_healthy(served, secrets["all"])


TENSOR = {"name": "sentence", "datatype": "BYTES", "shape": [1], "data": ["a film"]}
BODIES = {
    "/v1/predict": {"inputs": [{"adapter": "sst2", "texts": ["a film"]}]},
    "/v2/models/sst2/infer": {"inputs": [TENSOR]},
}


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_that_is_too_large_is_refused_and_the_server_goes_on(
    served: Served, secrets: dict[str, str], path: str
) -> None:
    body = json.dumps(BODIES[path]).encode()
    large = body + b" " * (5 * 1024**2)  # which changes nothing of what is asked
    assert await asyncio.to_thread(post, served, path, secrets["all"], body) == b"HTTP/1.1 200"
    assert await asyncio.to_thread(post, served, path, secrets["all"], large) == b"HTTP/1.1 400"
    assert await asyncio.to_thread(post, served, path, WRONG, large) == b"HTTP/1.1 401"
    assert await is_healthy(served, secrets["all"])
    assert await asyncio.to_thread(post, served, path, secrets["all"], body) == b"HTTP/1.1 200"


def post(served: Served, path: str, secret: str, body: bytes) -> bytes:
    """Send a body as far as the server takes it; return how the answer begins."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(address_of(served.http), timeout=TIMEOUT_S) as connection:
        with suppress(ConnectionError):
            connection.sendall(head.encode() + body)
        return connection.recv(12)


async def test_what_is_too_large_beside_the_message_is_refused_and_the_server_goes_on(
    served: Served, secrets: dict[str, str]
) -> None:
    predict = "/upt.v1.Inference/Predict"
    code = await code_of(served.target, predict, "x" * 100_000, FOR_COLA[predict])
    assert code is not grpc.StatusCode.OK
    with socket.create_connection(address_of(served.http)) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\n")
        answer = await asyncio.to_thread(flood, connection)
    assert answer in (b"", b"HTTP/1.1 400")
    assert await is_healthy(served, secrets["all"])


def flood(connection: socket.socket) -> bytes:
    """Send headers without end; return how the answer begins, nothing where it is hung up."""
    connection.settimeout(TIMEOUT_S)
    try:
        for _ in range(10_000):
            connection.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
        return connection.recv(12)
    except (BrokenPipeError, ConnectionResetError):
        return b""


def address_of(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


async def test_who_sends_a_byte_now_and_then_keeps_nobody_out(
    served: Served, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_calls, "_MAX_BODY_S", 0.2)
    half = {
        served.target: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
        served.admin: b"PRI * HT",
        served.http: b"GET /readyz HTTP/1.1\r\nho",
    }
    slow = [socket.create_connection(address_of(target)) for target in half for _ in range(50)]
    try:
        for connection, start in zip(
            slow, [each for each in half.values() for _ in range(50)], strict=True
        ):
            connection.sendall(start)
        assert await is_healthy(served, secrets["all"])
        head = (
            f"POST /v1/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secrets['all']}\r\n"
            f"content-length: 100\r\n\r\n{{"
        )
        with socket.create_connection(address_of(served.http), timeout=TIMEOUT_S) as waiting:
            waiting.sendall(head.encode())
            assert await asyncio.to_thread(waiting.recv, 12) == b"HTTP/1.1 504"
        assert (await ask(served, "GET", "/readyz", None))[0] == 200
    finally:
        for connection in slow:
            connection.close()


async def test_without_credentials_a_call_ends_before_its_message_comes(served: Served) -> None:
    never = asyncio.Event()

    async def silence() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    async with grpc.aio.insecure_channel(served.target) as channel:
        ask: Raw = channel.stream_stream("/upt.v1.Inference/Predict")
        call = ask(silence())
        async with asyncio.timeout(TIMEOUT_S):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
