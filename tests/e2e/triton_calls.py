"""Calls a server as a user of Triton's client does; writes what came back as JSON.

Runs in the environment of requirements-triton.txt, where PYTHONPATH names the packages of upt:

    python triton_calls.py HOST:GRPC_PORT HOST:HTTP_PORT

The server has ``--model-control``. Both of Triton's clients make the same calls, in the same words;
our own, in the same process, asks for two of their answers.
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException

from upt_server.client import Client
from upt_server.inputs import Options
from upt_zoo.errors import UptError

FILMS = ["a gripping, funny film", "a dull, lifeless mess"]
QUESTION, CONTEXT = "Who wrote the opera?", "The opera was written by Ludwig van Beethoven."


def fill(tensor, values: list[str], **options: bool):
    tensor.set_data_from_numpy(
        np.array([value.encode() for value in values], dtype=np.object_), **options
    )
    return tensor


def texts(triton, name: str, values: list[str]):
    return fill(triton.InferInput(name, [len(values)], "BYTES"), values)


def read(result, *names: str) -> dict[str, object]:
    values = {name: result.as_numpy(name).tolist() for name in names}
    return {
        name: [each.decode() if isinstance(each, bytes) else each for each in column]
        for name, column in values.items()
    }


def status_of(call, *arguments: object, **options: object) -> str:
    """Return the status of the error that a call ends with."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return str(error.status())
    return "none"


def parameters_of(response: object) -> dict[str, str]:
    if isinstance(response, dict):
        return response["parameters"]
    return {name: value.string_param for name, value in response.parameters.items()}


def field(response: object, name: str) -> object:
    return response[name] if isinstance(response, dict) else getattr(response, name)


def make_calls(triton, client, as_json: dict[str, bool]) -> dict[str, object]:
    """Make the calls that both clients can make; ``as_json`` makes gRPC answer as HTTP does."""

    def index() -> list[dict[str, str]]:
        listed = client.get_model_repository_index(**as_json)
        return listed["models"] if isinstance(listed, dict) else listed

    def in_memory() -> list[str]:
        return [each["name"] for each in index() if each["reason"] == "in memory"]

    config = client.get_model_config("sst2", **as_json)
    found: dict[str, object] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("sst2"),
        "server": client.get_server_metadata(**as_json)["name"],
        "metadata": client.get_model_metadata("mrpc", **as_json),
        "config": config.get("config", config),
        "index": index(),
    }
    result = client.infer("sst2", [texts(triton, "sentence", FILMS)], request_id="seven")
    response = result.get_response()
    found["sst2"] = read(result, "label", "score", "logits")
    found["id"] = field(response, "id")
    found["parameters"] = parameters_of(response)
    label = [triton.InferRequestedOutput("label")]
    chosen = client.infer("sst2", [texts(triton, "sentence", FILMS)], outputs=label)
    found["chosen"] = [field(each, "name") for each in field(chosen.get_response(), "outputs")]
    pair = [texts(triton, "question", [QUESTION]), texts(triton, "context", [CONTEXT])]
    found["squad"] = read(client.infer("squad", pair), "answer", "start", "end", "score")

    client.unload_model("sst2")
    found["unloaded"] = in_memory()
    client.load_model("sst2")
    found["loaded"] = in_memory()
    statistics = client.get_inference_statistics("sst2", **as_json)["model_stats"][0]
    found["inferences"] = int(statistics["inference_count"])

    found["errors"] = {
        "unknown": status_of(client.infer, "nobody", [texts(triton, "sentence", FILMS)]),
        "unknown metadata": status_of(client.get_model_metadata, "nobody"),
        "unknown load": status_of(client.load_model, "nobody"),
        "two versions": status_of(client.get_model_metadata, "sst2:1.0.1", "2.0.0"),
        "other field": status_of(client.infer, "sst2", [texts(triton, "text", FILMS)]),
        "configured load": status_of(client.load_model, "sst2", config="{}"),
    }
    return found


def call_by_grpc(target: str) -> dict[str, object]:
    client = by_grpc.InferenceServerClient(target)
    found = make_calls(by_grpc, client, {"as_json": True})
    answered: queue.Queue[by_grpc.InferResult | Exception] = queue.Queue()

    def answer(result: by_grpc.InferResult | None, error: Exception | None) -> None:
        answered.put(error or result)

    client.async_infer("sst2", [texts(by_grpc, "sentence", FILMS)], answer)
    found["async"] = read(answered.get(timeout=60), "label")
    client.start_stream(answer)
    for name in ("sst2", "nobody", "cola"):
        client.async_stream_infer(name, [texts(by_grpc, "sentence", FILMS)], request_id=name)
    streamed = [answered.get(timeout=60) for _ in range(3)]
    client.stop_stream()
    found["stream"] = [
        str(each) if isinstance(each, Exception) else each.get_response().id for each in streamed
    ]
    return found


def call_by_http(target: str) -> dict[str, object]:
    client = by_http.InferenceServerClient(target, concurrency=2)
    found = make_calls(by_http, client, {})
    waiting = [
        client.async_infer(name, [texts(by_http, "sentence", FILMS)]) for name in ("sst2", "cola")
    ]
    results = [each.get_result(timeout=60) for each in waiting]
    found["async"] = read(results[0], "label")
    tensor = fill(by_http.InferInput("sentence", [2], "BYTES"), FILMS, binary_data=False)
    wanted = [by_http.InferRequestedOutput("label", binary_data=False)]
    found["all in JSON"] = read(client.infer("sst2", [tensor], outputs=wanted), "label")
    client.close()
    return found


def call_by_ours(target: str) -> dict[str, object]:
    with Client(target) as client:
        asked = [("sst2", [film]) for film in FILMS]
        outputs = client.predict_many(asked, options=Options(has_logits=True)).outputs
        refused = "none"
        try:
            client.predict("nobody", FILMS[0])
        except UptError as error:
            refused = type(error).__name__
    return {
        "label": [output.answer.label for output in outputs],
        "score": [output.answer.score for output in outputs],
        "logits": [output.logits for output in outputs],
        "refused": refused,
    }


def main() -> None:
    found = {
        "grpc": call_by_grpc(sys.argv[1]),
        "http": call_by_http(sys.argv[2]),
        "ours": call_by_ours(sys.argv[1]),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
