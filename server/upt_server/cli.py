"""The command ``upt-server``: data on stdout, messages on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``; no answer in time counts as unavailable. Only this
module reads the environment (``UPT_*``, ``OTEL_*``), sets it, and sets up logging.
Everything beyond typer is imported inside the commands, which keeps ``--help`` fast.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_server.commands import doctor, operators, planning, scoring, top
from upt_server.commands import tokens as token_commands
from upt_server.configuration import (
    VARIABLES,
    options_of,
    unknown_variables,
)
from upt_server.options import (
    Adapter,
    Config,
    Device,
    GrpcPort,
    Host,
    HttpPort,
    Insecure,
    OwnCertificate,
    OwnKey,
    OwnToken,
    Target,
    Threads,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TrustedCa,
    WantedBackbone,
    WantedPrecision,
    WantedRunner,
    connected,
    server_tls,
)
from upt_server.precision import CheckedLoads
from upt_server.run_defaults import (
    ADAPTER_LABELS,
    ADAPTER_MEMORY_MB,
    BATCH_TOKENS,
    GRPC_PORT,
    HOST,
    HTTP_PORT,
    QUEUE_TOKENS,
    runner_cache_file,
)
from upt_server.telemetry.choices import LogFormat, LoggedCalls
from upt_zoo.options import AsJson, Home
from upt_zoo.terminal import is_quiet, make_app, print_table, run_command

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from google.protobuf.message import Message

    from upt_server.app import Ports
    from upt_server.client import Client
    from upt_server.results import Output, Prediction

_SHOWN_NUMBERS = 6  # of an embedding

logger = logging.getLogger(__name__)
app = make_app("Serve many adapters on one frozen encoder, and ask a server for answers.")


def main() -> None:
    """Run the command line and exit with its code."""
    # threads of the tokenizer would take the cores from the runner
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_command(app, "upt-server")


@app.command(context_settings={"auto_envvar_prefix": VARIABLES})
def run(
    context: typer.Context,
    host: Host = HOST,
    grpc_port: GrpcPort = GRPC_PORT,
    http_port: HttpPort = HTTP_PORT,
    config: Config = None,
    preload: Annotated[
        str,
        typer.Option(
            metavar="REF,REF",
            help="Adapters, separated by commas, loaded before the server is ready and never "
            "evicted.",
        ),
    ] = "",
    home: Home = None,
    backbone: WantedBackbone = None,
    precision: WantedPrecision = "exact",
    runner: WantedRunner = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    max_batch_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Tokens of a batch, prompt vectors included; a longer row goes alone.",
        ),
    ] = BATCH_TOKENS,
    max_queue_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that may wait.")
    ] = QUEUE_TOKENS,
    adapter_memory_mb: Annotated[
        int, typer.Option(min=1, help="Memory for adapters, in MiB.")
    ] = ADAPTER_MEMORY_MB,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    insecure: Insecure = False,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of the tokens of callers: who may call, and what."),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for operators; 0 takes a free one."),
    ] = None,
    admin_host: Annotated[
        str, typer.Option(help="Address of the port for operators.")
    ] = "127.0.0.1",
    audit_log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File that operators' calls are added to.", show_default="stderr"
        ),
    ] = None,
    route: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:TAG=SHARE,TAG=SHARE", help="Shares of a name's calls; repeatable."
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT",
            help="How much of the machine an adapter gets beside others when they compete, 1 to "
            "999; repeatable.",
            show_default="1 each",
        ),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that remembers what is in memory; the next start loads it first.",
        ),
    ] = None,
    self_check: Annotated[
        CheckedLoads,
        typer.Option(help="Loads that run an adapter's own example: start has named ones too."),
    ] = "start",
    log_format: Annotated[
        LogFormat, typer.Option(help="Form of the log's lines: text, or JSON.")
    ] = "text",
    log_calls: Annotated[
        LoggedCalls, typer.Option(help="Which calls leave a line in the log: none, failed or all.")
    ] = "none",
    trace_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Collector of traces, http://HOST:PORT; needs the extra [otel].",
            show_default="what OTEL_* say",
        ),
    ] = None,
    no_reflection: Annotated[
        bool, typer.Option("--no-reflection", help="Do not tell clients what can be called.")
    ] = False,
    model_control: Annotated[
        bool,
        typer.Option(
            "--model-control",
            help="Callers with the scope admin may load and unload by the Open Inference Protocol.",
        ),
    ] = False,
    no_metrics: Annotated[bool, typer.Option("--no-metrics", help="Do not show /metrics.")] = False,
    metrics_adapters: Annotated[
        int,
        typer.Option(
            min=0, help="How many adapters metrics tell apart, first come; the rest is `other`."
        ),
    ] = ADAPTER_LABELS,
    no_page: Annotated[bool, typer.Option("--no-page", help="Do not show the web page.")] = False,
    drain_timeout_s: Annotated[
        float, typer.Option(min=0, help="Time to finish calls when told to stop.")
    ] = 30.0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            envvar=f"{VARIABLES}_JSON",
            help="Say that it is ready, and on which ports, in JSON.",
        ),
    ] = False,
) -> None:
    """Serve until SIGTERM or SIGINT."""
    import asyncio

    from upt_server.app import serve
    from upt_server.routes import Route
    from upt_server.scheduling import Budget, parse_weight
    from upt_server.settings import AdminAddress, Settings
    from upt_server.telemetry.traces import choose_traces
    from upt_server.tls import check_exposure
    from upt_zoo.backbone import EMBEDDED_HUB_ID
    from upt_zoo.references import Reference

    _log_to_stderr(log_format, logging.WARNING if is_quiet(context) else logging.INFO)
    for warning in unknown_variables(os.environ, options_of(context.command.params)):
        logger.warning(warning)
    settings = Settings(
        home=home,
        backbone=backbone or EMBEDDED_HUB_ID,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        preload=tuple(Reference.parse(name) for name in preload.split(",") if name),
        precision=precision,
        runner=runner,
        device=device,
        runner_cache=runner_cache_file(),
        threads=threads,
        budget=Budget(tokens=max_batch_tokens),
        max_queue_tokens=max_queue_tokens,
        max_adapter_bytes=adapter_memory_mb * 1024**2,
        drain_timeout_s=drain_timeout_s,
        tls=server_tls(tls_cert, tls_key, tls_client_ca),
        tokens=tokens,
        admin=None if admin_port is None else AdminAddress(host=admin_host, port=admin_port),
        routes=tuple(map(Route.parse, route or ())),
        weights=dict(map(parse_weight, weight or ())),
        warm_start=warm_start,
        self_check=self_check,
        has_reflection=not no_reflection,
        has_metrics=not no_metrics,
        max_adapter_labels=metrics_adapters,
        has_page=not no_page,
        traces=choose_traces(trace_endpoint, os.environ),
        logged_calls=log_calls,
        has_model_control=model_control,
    )
    for address in (host, admin_host):
        check_exposure(address, settings.tls, is_insecure=insecure)
    _log_audit(audit_log)

    def announce(ports: "Ports") -> None:
        if as_json:
            event = {"event": "ready", "grpc_port": ports.grpc, "http_port": ports.http}
            more = {} if ports.admin is None else {"admin_port": ports.admin}
            typer.echo(json.dumps(event | more))
        else:
            admin = "" if ports.admin is None else f", operators on {admin_host}:{ports.admin}"
            scheme = "http" if settings.tls is None else "https"
            page = "" if no_page else f", a page on {scheme}://{host}:{ports.http}/"
            typer.echo(
                f"ready: gRPC on {host}:{ports.grpc}, HTTP on {host}:{ports.http}{page}{admin}"
            )

    asyncio.run(serve(settings, announce))


@app.command()
def predict(
    ref: Adapter,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="In the order of the task's fields.")
    ],
    server: Target = "127.0.0.1:8001",
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask for the answer to one input."""
    from upt_server import wire

    with _asking(server, token_file, ca, cert, key) as client:
        prediction = client.predict_many([(ref, texts)])
    if as_json:
        _print_json(wire.write_prediction(prediction))
    else:
        _print_prediction(prediction)


@app.command(name="ls")
def list_adapters(
    server: Target = "127.0.0.1:8001",
    token_file: OwnToken = None,
    ca: TrustedCa = None,
    cert: OwnCertificate = None,
    key: OwnKey = None,
    as_json: AsJson = False,
) -> None:
    """List every version of every adapter that the server can answer with."""
    from upt_protos.v1.inference_pb2 import ListAdaptersResponse
    from upt_server import wire

    with _asking(server, token_file, ca, cert, key) as client:
        adapters = client.adapters()
    if as_json:
        _print_json(ListAdaptersResponse(adapters=map(wire.write_adapter, adapters)))
        return
    print_table(
        ("adapter", "fields", "labels", "in memory"),
        (
            (
                f"{adapter.identity.name}:{adapter.identity.version}",
                ", ".join(adapter.fields),
                ", ".join(adapter.labels) or f"a {adapter.head}",
                "yes" if adapter.is_resident else "no",
            )
            for adapter in adapters
        ),
        empty=f"{server} has no adapters in its store; `upt-zoo pull NAME` there brings one",
    )


def _log_to_stderr(form: LogFormat, level: int) -> None:
    """Log where no ``--quiet`` reaches: what is wrong with a server is said in any case."""
    from upt_server.telemetry.log_lines import make_formatter

    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(make_formatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def _log_audit(file: Path | None) -> None:
    """Write the lines of the audit log as they are: to a file, else to stderr."""
    handler = logging.StreamHandler(sys.__stderr__) if file is None else logging.FileHandler(file)
    logger = logging.getLogger("upt_server.audit")
    logger.addHandler(handler)
    logger.propagate = False


def _asking(
    server: str, token_file: Path | None, ca: Path | None, cert: Path | None, key: Path | None
) -> "AbstractContextManager[Client]":
    from upt_server.client import Client

    return connected(Client, server, token_file, ca, cert, key)


def _print_json(message: "Message") -> None:
    """Print a message of ``upt.v1`` in protobuf's own JSON, as other clients see it."""
    from google.protobuf.json_format import MessageToJson

    typer.echo(
        MessageToJson(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            ensure_ascii=False,
        )
    )


def _print_prediction(prediction: "Prediction") -> None:
    (output,) = prediction.outputs
    timings, adapter = prediction.timings, output.adapter
    print_table(None, _answer_rows(output))
    cut = ", truncated" if output.is_truncated else ""
    typer.echo(
        f"{adapter.name}:{adapter.version}@{adapter.digest.removeprefix('sha256:')[:12]}, "
        f"{output.tokens} tokens{cut}, {timings.total_ms:.1f} ms (load {timings.load_ms:.1f}, "
        f"queue {timings.queue_ms:.1f}, forward {timings.forward_ms:.1f})"
    )


def _answer_rows(output: "Output") -> list[tuple[str, ...]]:
    """Return the answer and, where there are labels, every label from likely to unlikely."""
    from upt_zoo.answers import (
        EmbeddingAnswer,
        EntitiesAnswer,
        LabelAnswer,
        LabelSetAnswer,
        SpanAnswer,
        ValueAnswer,
    )

    match output.answer:
        case ValueAnswer(value=value):
            return [(f"{value:.4g}",)]
        case SpanAnswer(text=text, start=start, end=end, score=score):
            return [(text, _percent(score), f"characters {start} to {end}")]
        case EntitiesAnswer(entities=entities):
            return [
                (
                    each.text,
                    each.label,
                    _percent(each.score),
                    f"characters {each.start} to {each.end}",
                )
                for each in entities
            ] or [("no entity",)]
        case EmbeddingAnswer(vector=vector):
            shown = " ".join(f"{value:.4f}" for value in vector[:_SHOWN_NUMBERS])
            return [(f"{len(vector)} numbers:", f"{shown} …")]
        case LabelAnswer(scores=scores):
            return _ranking(output.labels, scores)
        case LabelSetAnswer(labels=given, scores=scores):
            first = (", ".join(given) or "no label reaches the threshold",)
            return [first, *_ranking(output.labels, scores)]


def _ranking(labels: Sequence[str], scores: Sequence[float]) -> list[tuple[str, ...]]:
    pairs = zip(labels, scores, strict=True)
    ranked = sorted(pairs, key=lambda pair: pair[1], reverse=True)
    return [(label, _percent(score)) for label, score in ranked]


def _percent(score: float) -> str:
    return f"{100 * score:.1f} %"


# the help lists them in this order, groups last
app.command()(scoring.score)
app.command()(operators.status)
app.command()(top.top)
app.command(context_settings={"auto_envvar_prefix": VARIABLES})(doctor.doctor)
app.command()(planning.plan)
app.add_typer(token_commands.app, name="token")
app.add_typer(operators.app, name="admin")


if __name__ == "__main__":
    main()
