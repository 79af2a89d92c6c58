"""What the commands that load one server of random adapters have in common."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from upt_benchmarks.machine import this_machine
from upt_benchmarks.served import ServerProcess, publish_random, running_server
from upt_zoo.spec import AdapterSpec

ADAPTERS, CALLERS, THREADS = 32, 64, 2


def load_parser(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """Return a parser of the options that all of these commands have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help="of each measurement")
    parser.add_argument("--precision", choices=["exact", "fast"], default="exact")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


@contextmanager
def serving_random(
    specs: Sequence[AdapterSpec], precision: str
) -> Iterator[tuple[ServerProcess, list[str]]]:
    """Run a server with adapters of random numbers, all in memory; yield it and their names."""
    with tempfile.TemporaryDirectory(prefix="upt-loaded-") as home:
        names = publish_random(Path(home), specs)
        options = ["--precision", precision, "--threads", str(THREADS)]
        with running_server(Path(home), [*options, "--preload", ",".join(names)]) as server:
            yield server, names


def print_measured(arguments: argparse.Namespace, measured: Mapping[str, object]) -> None:
    """Print what was measured, and on what, as JSON, and write it to ``--out``."""
    about = {"machine": asdict(this_machine()), "precision": arguments.precision}
    text = json.dumps({**about, **measured}, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
