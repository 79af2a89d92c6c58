"""The main job as a user does it: real commands, real weights, real data, no network."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from upt_server.client import Client
from upt_zoo.answers import LabelAnswer, SpanAnswer, ValueAnswer
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.references import Reference

CATALOGUE = ("sst2", "mrpc", "stsb", "cola", "squad")
WHOLE_CATALOGUE = sorted({reference.name for reference in embedded_catalogue().list()})
TIMEOUT_S = 240
EVALUATION_TIMEOUT_S = 1800  # 5,000 texts of 256 tokens, by one thread of a small CPU
CONTEXT = "The opera was written by Ludwig van Beethoven and first heard in Vienna in 1805."


def command(
    name: str, *arguments: str, home: Path, timeout_s: float = TIMEOUT_S
) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(
        [sys.executable, "-m", f"{name}.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | {"UPT_ZOO_HOME": str(home), "COLUMNS": "200"},
    )
    assert result.returncode == 0, result.stderr
    return result


@dataclass(frozen=True)
class Served:
    target: str
    http: str

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as response:
            text = response.read().decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Served]:
    ports = ("--grpc-port", "0", "--http-port", "0", "--json")
    with subprocess.Popen(
        [sys.executable, "-m", "upt_server.cli", "run", *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"UPT_ZOO_HOME": str(home)},
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield Served(
                target=f"127.0.0.1:{ready['grpc_port']}", http=f"127.0.0.1:{ready['http_port']}"
            )
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store into which the five adapters were pulled."""
    home = tmp_path_factory.mktemp("home")
    for name in CATALOGUE:
        command("upt_zoo", "pull", name, home=home)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Served]:
    with serving(home, "--preload", ",".join(CATALOGUE)) as served:
        yield served


def test_a_pulled_adapter_is_explained_without_a_network(home: Path) -> None:
    shown = json.loads(command("upt_zoo", "show", "sst2", "--json", home=home).stdout)
    assert shown["version"] == "1.0.1"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", shown["digest"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", shown["backbone"]["digest"])
    assert shown["metrics"]["dev/accuracy"] > 80
    assert shown["parameters"] == {"trained": 246_698, "served": 245_928, "head": 770}


def test_every_adapter_of_the_catalogue_verifies() -> None:
    catalogue = embedded_catalogue()
    references = catalogue.list()
    assert {reference.name for reference in references} >= set(CATALOGUE)
    for reference in references:
        catalogue.verify(catalogue.resolve(reference))


def test_one_mixed_call_is_one_forward_pass_with_five_adapters(server: Served) -> None:
    before = server.metric("upt_batch_distinct_adapters_count")
    adapters_before = server.metric("upt_batch_distinct_adapters_sum")
    with Client(server.target) as client:
        prediction = client.predict_many(
            [
                ("sst2", ["a gripping, funny film"]),
                ("mrpc", ["He sold the house in May.", "In May he sold the house."]),
                ("stsb", ["A man plays a guitar.", "A plane takes off."]),
                ("cola", ["The book was read by the boy."]),
                ("squad", ["Who wrote the opera?", CONTEXT]),
            ]
        )
    assert server.metric("upt_batch_distinct_adapters_count") - before == 1
    assert server.metric("upt_batch_distinct_adapters_sum") - adapters_before == 5
    (batch,) = prediction.batches
    assert (batch.rows, batch.distinct_adapters) == (5, 5)
    sentiment, paraphrase, similarity, acceptability, span = (
        output.answer for output in prediction.outputs
    )
    assert isinstance(sentiment, LabelAnswer)
    assert sentiment.label == "positive"
    assert isinstance(paraphrase, LabelAnswer)
    assert paraphrase.label == "equivalent"
    assert isinstance(similarity, ValueAnswer)
    assert similarity.value < 2
    assert isinstance(acceptability, LabelAnswer)
    assert acceptability.label in ("acceptable", "unacceptable")
    assert isinstance(span, SpanAnswer)
    assert "Beethoven" in span.text
    assert span.text == CONTEXT[span.start : span.end]
    digests = {output.adapter.digest for output in prediction.outputs}
    assert digests == {
        embedded_catalogue().resolve(Reference(name=name)).digest for name in CATALOGUE
    }


def evaluation(adapter: str, *arguments: str, home: Path) -> dict[str, float]:
    asked = ("evaluate", adapter, "--json", *arguments)
    result = command("upt_training", *asked, home=home, timeout_s=EVALUATION_TIMEOUT_S)
    metrics: dict[str, float] = json.loads(result.stdout)["metrics"]
    return metrics


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(2 * EVALUATION_TIMEOUT_S)
@pytest.mark.parametrize("adapter", WHOLE_CATALOGUE)
def test_the_server_reaches_the_metrics_of_the_card(
    adapter: str, home: Path, server: Served
) -> None:
    """To 0.01 points: other batches round differently in the seventh digit."""
    command("upt_zoo", "pull", adapter, home=home)
    stored = embedded_catalogue().resolve(Reference(name=adapter))
    card = {
        name.removeprefix("dev/"): value
        for name, value in stored.spec.lineage.metrics.items()
        if name.startswith("dev/")
    }
    served = evaluation(adapter, "--server", server.target, home=home)
    assert served == pytest.approx(card, abs=0.01)


@pytest.mark.data
@pytest.mark.slow
def test_evaluation_in_process_and_through_the_server_agree(home: Path, server: Served) -> None:
    assert evaluation("mrpc", "--server", server.target, home=home) == evaluation("mrpc", home=home)


@pytest.mark.data
@pytest.mark.slow
def test_a_running_server_answers_with_an_adapter_trained_after_it_started(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as served:
        command("upt_training", "run", "--task", "rte", "--max-minutes", "0.2", home=tmp_path)
        listed = json.loads(command("upt_zoo", "ls", "--json", home=tmp_path).stdout)
        assert [(each["name"], each["version"]) for each in listed] == [("rte", "1.0.0")]
        with Client(served.target) as client:
            output = client.predict("rte", "A man sleeps on a bench.", "A man is asleep.")
    assert output.adapter.digest == listed[0]["digest"]
    assert isinstance(output.answer, LabelAnswer)
