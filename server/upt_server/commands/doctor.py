"""``upt-server doctor``: whether a server could start here, before it is started."""

from typing import Annotated

import typer

from upt_server.configuration import VARIABLES
from upt_server.options import (
    Config,
    Device,
    GrpcPort,
    Host,
    HttpPort,
    Insecure,
    Threads,
    TlsCert,
    TlsClientCa,
    TlsKey,
    WantedBackbone,
    WantedPrecision,
    WantedRunner,
    server_tls,
)
from upt_server.run_defaults import GRPC_PORT, HOST, HTTP_PORT, runner_cache_file
from upt_zoo.errors import Unavailable
from upt_zoo.options import Home, print_findings
from upt_zoo.terminal import EXIT_CODES


def doctor(
    host: Host = HOST,
    grpc_port: GrpcPort = GRPC_PORT,
    http_port: HttpPort = HTTP_PORT,
    config: Config = None,
    home: Home = None,
    backbone: WantedBackbone = None,
    precision: WantedPrecision = "exact",
    runner: WantedRunner = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    insecure: Insecure = False,
    as_json: Annotated[
        bool, typer.Option("--json", envvar=f"{VARIABLES}_JSON", help="Print JSON.")
    ] = False,
) -> None:
    """Check whether `run` with these options could serve here; exit code 69 if it could not.

    They come from variables and the file of `--config` too, as those of `run` do.
    """
    from upt_server.checkup import Start, examine
    from upt_zoo.backbone import EMBEDDED_HUB_ID

    findings = examine(
        Start(
            home=home,
            backbone=backbone or EMBEDDED_HUB_ID,
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            precision=precision,
            runner=runner,
            runner_cache=runner_cache_file(),
            device=device,
            threads=threads,
            tls=server_tls(tls_cert, tls_key, tls_client_ca),
            is_insecure=insecure,
        )
    )
    print_findings(findings, as_json=as_json)
    if any(finding.level == "failure" for finding in findings):
        raise typer.Exit(EXIT_CODES[Unavailable])
