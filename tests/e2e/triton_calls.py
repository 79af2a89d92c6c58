"""Calls a server as a user of Triton's client does; writes what came back as JSON.

Runs in the environment of requirements-triton.txt: python triton_calls.py HOST:PORT
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton


def texts(name: str, values: list[str]) -> triton.InferInput:
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=np.object_))
    return tensor


def read(result: triton.InferResult, *names: str) -> dict[str, object]:
    values = {name: result.as_numpy(name).tolist() for name in names}
    return {
        name: [each.decode() if isinstance(each, bytes) else each for each in column]
        for name, column in values.items()
    }


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1])
    found: dict[str, object] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("sst2"),
        "metadata": client.get_model_metadata("mrpc", as_json=True),
        "index": client.get_model_repository_index(as_json=True)["models"],
    }
    films = ["a gripping, funny film", "a dull, lifeless mess"]
    result = client.infer("sst2", [texts("sentence", films)], request_id="seven")
    response = result.get_response()
    found["sst2"] = read(result, "label", "score", "logits")
    found["id"] = response.id
    found["parameters"] = {k: v.string_param for k, v in response.parameters.items()}
    chosen = client.infer(
        "sst2", [texts("sentence", films)], outputs=[triton.InferRequestedOutput("label")]
    )
    found["chosen"] = [output.name for output in chosen.get_response().outputs]
    question, context = "Who wrote the opera?", "The opera was written by Ludwig van Beethoven."
    found["squad"] = read(
        client.infer("squad", [texts("question", [question]), texts("context", [context])]),
        "answer",
        "start",
        "end",
        "score",
    )
    try:
        client.infer("nobody", [texts("sentence", films)])
    except triton.InferenceServerException as error:
        found["unknown"] = error.status()

    answered: queue.Queue[triton.InferResult | Exception] = queue.Queue()

    def answer(result: triton.InferResult | None, error: Exception | None) -> None:
        answered.put(error or result)

    client.async_infer("sst2", [texts("sentence", films)], answer)
    found["async"] = read(answered.get(timeout=60), "label")
    client.start_stream(answer)
    for name in ("sst2", "nobody", "cola"):
        client.async_stream_infer(name, [texts("sentence", films)], request_id=name)
    streamed = [answered.get(timeout=60) for _ in range(3)]
    client.stop_stream()
    found["stream"] = [
        str(each) if isinstance(each, Exception) else each.get_response().id for each in streamed
    ]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
