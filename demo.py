"""The main job in one go: pull adapters, serve them, ask five of them in one mixed call.

    make demo

Uses the real commands and the embedded catalogue, keeps everything in a temporary directory, and
exits non-zero unless the five adapters answered in one forward pass.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from upt_server.client import Client
from upt_server.results import Output, Prediction
from upt_zoo.answers import LabelAnswer, LabelSetAnswer, SpanAnswer, ValueAnswer

INPUTS = (
    ("sst2", ("a gripping, funny film with a heart",)),
    (
        "mrpc",
        (
            "The company said profits rose 12 percent in the third quarter.",
            "Third-quarter profits were up by 12 percent, the company said.",
        ),
    ),
    ("stsb", ("A man is playing a guitar.", "Someone plays an instrument.")),
    ("cola", ("The children sings often loud the song.",)),
    (
        "squad",
        (
            "Who designed the lighthouse?",
            "The lighthouse on the northern cape was built between 1868 and 1871. It was designed "
            "by the engineer Maria Lindqvist, who also drew the plans of the harbour, and its lamp "
            "could be seen from thirty kilometres away.",
        ),
    ),
)
BIN = Path(sys.executable).parent
INPUT_WIDTH = 36  # letters: with an answer beside it a row fits into 80
STOP_TIMEOUT_S = 30


def main() -> int:
    """Run the demo; return the exit code."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="upt-demo-") as home:
        environment = {**os.environ, "UPT_ZOO_HOME": home}
        names = [name for name, _ in INPUTS]
        call(console, ["upt-zoo", "pull", *names], environment)
        with running_server(console, ",".join(names), environment) as (grpc_port, http_port):
            checked = batch_metrics(http_port)  # at start each adapter has answered its example
            with Client(f"127.0.0.1:{grpc_port}") as client:
                prediction = client.predict_many(INPUTS)
            forwards, adapters = (
                now - before for now, before in zip(batch_metrics(http_port), checked, strict=True)
            )
    show(console, prediction)
    console.print(
        f"The server's own metrics: {forwards:.0f} forward pass, {adapters:.0f} distinct adapters.",
        highlight=False,
    )
    if (forwards, adapters) != (1, len(INPUTS)):
        console.print("expected one forward pass with all adapters", style="red")
        return 1
    console.print("Next: `. .venv/bin/activate`, then the commands of README.md, from `Use it` on.")
    return 0


def call(console: Console, command: list[str], environment: dict[str, str]) -> None:
    """Run one of our commands to its end, and show it."""
    console.print(f"$ {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
    subprocess.run([BIN / command[0], *command[1:]], env=environment, check=True)


@contextmanager
def running_server(
    console: Console, preload: str, environment: dict[str, str]
) -> Iterator[tuple[int, int]]:
    """Start a server on free ports, yield (gRPC port, HTTP port), stop it gracefully."""
    command = ["upt-server", "run", "--grpc-port=0", "--http-port=0", "--json"]
    command.append(f"--preload={preload}")
    console.print(f"$ {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [BIN / command[0], *command[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                server.wait(STOP_TIMEOUT_S)
                log.seek(0)
                raise RuntimeError(f"the server did not start:\n{log.read()}")
            ready = json.loads(line)
            yield ready["grpc_port"], ready["http_port"]
        finally:
            server.terminate()
            server.communicate(timeout=STOP_TIMEOUT_S)


def batch_metrics(http_port: int) -> tuple[float, float]:
    """Read from ``/metrics`` how many batches were computed, and their adapters summed."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as response:
        text = response.read().decode()
    count, total = (
        float(found[1])
        for name in ("count", "sum")
        if (found := re.search(rf"^upt_batch_distinct_adapters_{name} (\S+)$", text, re.MULTILINE))
    )
    return count, total


def show(console: Console, prediction: Prediction) -> None:
    """Print the answers and where the time went."""
    table = Table("adapter", "input", "answer", box=None, pad_edge=False)
    for (_, texts), output in zip(INPUTS, prediction.outputs, strict=True):
        width = INPUT_WIDTH // len(texts) - 1
        shown = " | ".join(shorten(text, width, placeholder=" …") for text in texts)
        table.add_row(output.adapter.name, shown, in_words(output))
    console.print(table)
    timings = prediction.timings
    console.print(
        f"One call: {timings.total_ms:.1f} ms in the server (load {timings.load_ms:.1f}, tokenise "
        f"{timings.tokenize_ms:.1f}, queue {timings.queue_ms:.1f}, forward "
        f"{timings.forward_ms:.1f}), backbone {prediction.backbone_digest[7:19]}, "
        f"precision {prediction.precision}.",
        highlight=False,
    )


def in_words(output: Output) -> str:
    """Say the answer in a few words."""
    match output.answer:
        case LabelAnswer(label=label, score=score):
            return f"{label} ({score:.0%})"
        case LabelSetAnswer(labels=labels):
            return ", ".join(labels) or "no label"
        case ValueAnswer(value=value):
            return f"{value:.2f}"
        case SpanAnswer(text=text, start=start, end=end, score=score):
            return f"{text!r} at {start}:{end} ({score:.0%})"


if __name__ == "__main__":
    sys.exit(main())
