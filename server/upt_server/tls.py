"""Transport security of both edges and of the client; which addresses need it."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from upt_zoo.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """PEM files of the server; with ``client_ca`` callers must show a certificate of it (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Read the files for the gRPC edge.

        Raises:
            InvalidInput: a file cannot be read.
        """
        pair = (_read(self.key), _read(self.certificate))
        client_ca = _read(self.client_ca) if self.client_ca else None
        return grpc.ssl_server_credentials(
            [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
        )

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the same for the HTTP edge, which reads the files itself.

        Raises:
            InvalidInput: a file cannot be read.
        """
        for file in filter(None, (self.certificate, self.key, self.client_ca)):
            _read(file)  # OpenSSL does not name what is missing
        needs_client = ssl.CERT_NONE if self.client_ca is None else ssl.CERT_REQUIRED
        return {
            "ssl_certfile": str(self.certificate),
            "ssl_keyfile": str(self.key),
            "ssl_ca_certs": None if self.client_ca is None else str(self.client_ca),
            "ssl_cert_reqs": needs_client,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """PEM files of a caller: whom to trust, None for the system's list, and who it is (mTLS)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidInput: a file cannot be read, or of certificate and key one is missing.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("a client's certificate needs its key, and the key its certificate")
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca) if self.ca else None,
            private_key=_read(self.key) if self.key else None,
            certificate_chain=_read(self.certificate) if self.certificate else None,
        )


def check_exposure(host: str, tls: ServerTls | None, *, is_insecure: bool) -> None:
    """Let only loopback be reached without transport security, unless told otherwise.

    Raises:
        InvalidInput: the address can be reached from elsewhere.
    """
    if tls is None and not is_insecure and not is_loopback(host):
        raise InvalidInput(
            f"{host} can be reached from other machines: give --tls-cert and --tls-key, or "
            f"--insecure if something in front of the server protects it"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from error
