"""Triton's own clients, unmodified, against a running server with the shipped adapters.

Our own client calls from the same process: a program may use both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from upt_zoo.catalogue import embedded_catalogue, home_store
from upt_zoo.references import Reference

Calls = dict[str, dict[str, object]]  # by client, and what was called

PYTHON = Path(os.environ.get("TRITON_VENV", ".venv-triton")) / "bin" / "python"
ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "zoo", ROOT / "server", ROOT / "protos", Path(__file__).parent)
# whose client is imported first
ORDERS = ("tritonclient.grpc, upt_server.client", "upt_server.client, tritonclient.grpc")
ADAPTERS = ("sst2", "mrpc", "cola", "squad")
# the same errors over both protocols
STATUSES = {
    "unknown": ("StatusCode.NOT_FOUND", "404"),
    "unknown metadata": ("StatusCode.NOT_FOUND", "404"),
    "unknown load": ("StatusCode.NOT_FOUND", "404"),
    "two versions": ("StatusCode.INVALID_ARGUMENT", "400"),
    "other field": ("StatusCode.INVALID_ARGUMENT", "400"),
    "configured load": ("StatusCode.INVALID_ARGUMENT", "400"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Calls]:
    """What came back in each order of imports."""
    if not PYTHON.exists():
        pytest.skip("no environment of Triton's client; `make test` makes one")
    home = tmp_path_factory.mktemp("home")
    for reference in embedded_catalogue().list():
        if reference.name in ADAPTERS:
            home_store(home).copy_from(embedded_catalogue(), reference)
    command = ["-m", "upt_server.cli", "run", "--grpc-port", "0", "--http-port", "0", "--json"]
    with subprocess.Popen(
        [
            *(sys.executable, *command, "--home", str(home), "--runner", "torch-fp32"),
            "--model-control",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        ports = json.loads(server.stdout.readline())
        targets = [f"127.0.0.1:{ports[name]}" for name in ("grpc_port", "http_port")]
        try:
            return {order: make_calls(targets, order) for order in ORDERS}
        finally:
            server.terminate()


def make_calls(targets: list[str], order: str) -> Calls:
    done = subprocess.run(
        [PYTHON, "-c", f"import {order}, triton_calls; triton_calls.main()", *targets],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PACKAGES))},
    )
    assert done.returncode == 0, f"import {order}: {done.stderr}"
    found: Calls = json.loads(done.stdout)
    return found


@pytest.fixture
def calls(runs: dict[str, Calls]) -> Calls:
    return runs[ORDERS[0]]


@pytest.fixture(params=["grpc", "http"])
def found(request: pytest.FixtureRequest, calls: Calls) -> dict[str, object]:
    return calls[request.param]


def test_the_server_says_that_it_lives_and_what_it_has(found: dict[str, object]) -> None:
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["server"] == "upt"
    index = found["index"]
    assert isinstance(index, list)
    assert {each["name"] for each in index} == set(ADAPTERS)
    assert {each["state"] for each in index} == {"READY"}


def test_metadata_names_the_tasks_text_fields(found: dict[str, object]) -> None:
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    assert [each["name"] for each in metadata["inputs"]] == ["sentence1", "sentence2"]
    assert [each["name"] for each in metadata["outputs"]] == ["label", "score", "logits"]


def test_texts_are_answered_with_labels_scores_and_logits(found: dict[str, object]) -> None:
    answers = found["sst2"]
    assert isinstance(answers, dict)
    assert answers["label"] == ["positive", "negative"]
    assert all(score > 0.5 for score in answers["score"])
    assert [len(row) for row in answers["logits"]] == [2, 2]
    assert found["chosen"] == ["label"]


def test_every_answer_names_the_bytes_that_gave_it(found: dict[str, object]) -> None:
    assert found["id"] == "seven"
    parameters = found["parameters"]
    assert isinstance(parameters, dict)
    stored = embedded_catalogue().resolve(Reference(name="sst2"))
    assert parameters["digest"] == stored.digest
    assert parameters["adapter"] == stored.reference
    assert parameters["precision"] == "exact"


def test_a_question_is_answered_with_a_span(found: dict[str, object]) -> None:
    squad = found["squad"]
    assert isinstance(squad, dict)
    assert squad["answer"] == ["Ludwig van Beethoven"]
    assert (squad["start"], squad["end"]) == ([25], [45])


def test_a_configuration_names_the_labels(found: dict[str, object]) -> None:
    config = found["config"]
    assert isinstance(config, dict)
    assert config["parameters"]["labels"]["string_value"] == "negative,positive"
    assert [each["data_type"] for each in config["output"]] == ["TYPE_STRING"] + ["TYPE_FP32"] * 2


def test_adapters_are_unloaded_and_loaded(found: dict[str, object]) -> None:
    unloaded, loaded = found["unloaded"], found["loaded"]
    assert isinstance(unloaded, list)
    assert isinstance(loaded, list)
    assert set(loaded) - set(unloaded) == {"sst2"}


def test_statistics_count_what_was_asked(found: dict[str, object]) -> None:
    inferences = found["inferences"]
    assert isinstance(inferences, int)
    assert inferences >= 4


@pytest.mark.parametrize(("place", "protocol"), [(0, "grpc"), (1, "http")])
def test_errors_have_the_statuses_of_their_protocol(
    calls: Calls, place: int, protocol: str
) -> None:
    assert calls[protocol]["errors"] == {case: each[place] for case, each in STATUSES.items()}


def test_calls_may_be_asynchronous(found: dict[str, object]) -> None:
    assert found["async"] == {"label": ["positive", "negative"]}


def test_tensors_may_stand_in_the_json(calls: Calls) -> None:
    assert calls["http"]["all in JSON"] == {"label": ["positive", "negative"]}


def test_a_stream_is_answered_in_order(calls: Calls) -> None:
    stream = calls["grpc"]["stream"]
    assert isinstance(stream, list)
    assert (stream[0], stream[2]) == ("sst2", "cola")
    assert "no adapter nobody" in stream[1]


@pytest.mark.parametrize("order", ORDERS)
def test_our_own_client_answers_alike_in_the_same_process(
    runs: dict[str, Calls], order: str
) -> None:
    ours, theirs = runs[order]["ours"], runs[order]["grpc"]["sst2"]
    assert isinstance(theirs, dict)
    assert ours["refused"] == "AdapterNotFound"
    assert ours["label"] == theirs["label"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert np.array(ours["logits"]) == pytest.approx(np.array(theirs["logits"]), abs=1e-5)
