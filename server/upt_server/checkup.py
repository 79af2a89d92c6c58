"""Looks whether a server could start on this machine, and how it would compute.

It loads no weights, fetches nothing, and leaves the ports as they were.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from upt_server.native import library
from upt_server.precision import RUNNERS, Precision, RunnerChoice, RunnerName
from upt_server.runner_choice import measured_earlier, missing_for
from upt_server.tls import ServerTls, check_exposure
from upt_zoo.backbone import Backbone, is_on_this_machine, resolve_backbone
from upt_zoo.catalogue import home_store
from upt_zoo.errors import UptError
from upt_zoo.findings import Finding, run_checks
from upt_zoo.local import checkup


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a server would be started with, as far as the checks ask."""

    home: Path | None
    backbone: str
    host: str
    grpc_port: int
    http_port: int
    precision: Precision
    runner: RunnerChoice
    runner_cache: Path | None
    device: str
    threads: int | None
    tls: ServerTls | None = None
    is_insecure: bool = False


def examine(start: Start) -> tuple[Finding, ...]:
    """Run every check; where one has failed no server can start.

    Those that need the backbone are left out where it is not on this machine.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "machine": _machine,
        "threads": partial(_threads, start),
        "kernel": _kernel,
        "grpc port": partial(_port, "grpc", start.host, start.grpc_port),
        "http port": partial(_http_port, start),
        "tls": partial(_tls, start),
        "zoo": partial(_zoo, start),
        "backbone": partial(_backbone, start),
    }
    if (backbone := _backbone_here(start)) is not None:
        checks |= {
            "precision": partial(_precision, start, backbone),
            "runner": partial(_runner, start, backbone),
        }
    return run_checks(checks, worst="failure")


def _machine() -> Finding:
    model = next((line for line in library.machine() if line.startswith("model name")), "")
    cpu = model.partition(":")[2].strip() or "a CPU that does not say its name"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = f"{cpu}, {_cores()} cores to use, {memory:.1f} GB of memory"
    return Finding(check="machine", level="ok", text=text)


def _threads(start: Start) -> Finding:
    threads, cores = start.threads or torch.get_num_threads(), _cores()
    text = f"{threads} on {cores} cores"
    if threads > cores:
        return Finding(
            check="threads",
            level="warning",
            text=f"{text}: they wait for each other",
            remedy=f"--threads {cores}",
        )
    return Finding(check="threads", level="ok", text=text)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # on Linux, where a process may have fewer than all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _kernel() -> Finding:
    lacking = {number: library.missing_for(number) for number in library.NUMBERS}
    able = [number for number, reason in lacking.items() if reason is None]
    if able:
        return Finding(check="kernel", level="ok", text=f"{', '.join(able)} by {library.unit()}")
    return Finding(
        check="kernel",
        level="warning",
        text=f"cannot be used: {lacking['fp32']}",
        remedy="torch computes without it, slower",
    )


def _port(kind: str, host: str, port: int) -> Finding:
    name = f"{kind} port"
    if port == 0:
        return Finding(check=name, level="ok", text="a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:  # whose text may name the address once more, behind "(while"
        return Finding(
            check=name,
            level="failure",
            text=f"{host}:{port}: {(error.strerror or str(error)).partition(' (while ')[0]}",
            remedy=f"stop what listens there, or take another --{kind}-port; 0 takes a free one",
        )
    return Finding(check=name, level="ok", text=f"{host}:{port} is free")


def _http_port(start: Start) -> Finding:
    if start.http_port == start.grpc_port != 0:
        return Finding(
            check="http port",
            level="failure",
            text=f"{start.http_port} is the port for gRPC",
            remedy="take another --http-port; 0 takes a free one",
        )
    return _port("http", start.host, start.http_port)


def _tls(start: Start) -> Finding:
    check_exposure(start.host, start.tls, is_insecure=start.is_insecure)
    if start.tls is None:
        return Finding(check="tls", level="ok", text=f"none on {start.host}")
    start.tls.uvicorn_options()  # reads all files
    return Finding(check="tls", level="ok", text=f"the certificate {start.tls.certificate}")


def _zoo(start: Start) -> Finding:
    store = home_store(start.home)
    versions = store.listing().all()
    bad = [each.check for each in checkup.examine(store) if each.level != "ok"]
    if names := ", ".join(check for check in bad if check != "backbones"):  # this one has its own
        return Finding(
            check="zoo",
            level="warning",
            text=f"{store.root}: something is wrong with {names}",
            remedy="`upt-zoo doctor` says what",
        )
    if not versions:
        return Finding(
            check="zoo",
            level="warning",
            text=f"no adapters in {store.root}",
            remedy="`upt-zoo ls --catalogue` lists what `upt-zoo pull NAME` fetches",
        )
    return Finding(check="zoo", level="ok", text=f"{store.root}, {len(versions)} versions")


def _backbone(start: Start) -> Finding:
    if not is_on_this_machine(start.backbone):
        return Finding(
            check="backbone",
            level="warning",
            text=f"{start.backbone} is not on this machine",
            remedy="a start fetches it from the hub; fetch it before if there is no network",
        )
    identity = resolve_backbone(start.backbone).identity
    return Finding(check="backbone", level="ok", text=f"{identity.hub_id}, {identity.digest}")


def _backbone_here(start: Start) -> Backbone | None:
    try:
        return resolve_backbone(start.backbone) if is_on_this_machine(start.backbone) else None
    except (UptError, OSError):
        return None  # as the check of the backbone says


def _able(start: Start, backbone: Backbone, precision: Precision) -> list[RunnerName]:
    return [
        name
        for name in RUNNERS[precision]
        if missing_for(name, backbone.config, start.device) is None
    ]


def _precision(start: Start, backbone: Backbone) -> Finding:
    able = {each: _able(start, backbone, each) for each in get_args(Precision)}
    text = "; ".join(f"{each}: {', '.join(names) or 'none'}" for each, names in able.items())
    if able[start.precision]:
        return Finding(check="precision", level="ok", text=text)
    return Finding(
        check="precision",
        level="failure",
        text=f"{text}; nothing here computes {start.precision}",
        remedy="take another --precision or --device",
    )


def _runner(start: Start, backbone: Backbone) -> Finding:
    able = _able(start, backbone, start.precision)
    shown = ", ".join(able) or "none"
    if not able or start.runner not in (*able, "auto"):
        return Finding(
            check="runner",
            level="failure",
            text=f"{start.runner}: what computes {start.precision} here is {shown}",
            remedy="take another --runner; auto takes the fastest there is",
        )
    if start.runner != "auto":
        return Finding(check="runner", level="ok", text=f"{start.runner}, as was asked")
    if len(able) == 1:
        return Finding(check="runner", level="ok", text=f"{shown}, the only one")
    measured = measured_earlier(
        backbone,
        able,
        threads=start.threads or torch.get_num_threads(),
        cache=start.runner_cache,
        device=start.device,
    )
    if not measured:
        return Finding(check="runner", level="ok", text=f"the start will measure {shown}")
    best = min(measured, key=lambda name: measured[name])
    times = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in measured.items())
    return Finding(check="runner", level="ok", text=f"{best}, measured earlier: {times}")
