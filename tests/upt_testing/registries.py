"""A real registry on loopback: ``docker-registry`` as Debian packages it."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Registry:
    """A running registry; ``host`` is 127.0.0.1:port."""

    host: str
    folder: Path

    @property
    def remote(self) -> str:
        return f"oci://{self.host}/team"


@dataclass(frozen=True)
class Certificate:
    """A throw-away certificate for 127.0.0.1 that signs itself."""

    certificate: Path
    key: Path


def need(*programs: str) -> None:
    """Skip the test where a program is absent."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextmanager
def running_registry(
    folder: Path,
    *,
    auth: Mapping[str, object] | None = None,
    tls: Certificate | None = None,
) -> Iterator[Registry]:
    """Run a registry until the context ends; it keeps its data in ``folder``."""
    need("docker-registry")
    port = free_port()
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "secret": "of the tests",
            **({"tls": {"certificate": str(tls.certificate), "key": str(tls.key)}} if tls else {}),
        },
        **({"auth": auth} if auth else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
        try:
            wait_for(port, process, folder / "log")
            yield Registry(host=f"127.0.0.1:{port}", folder=folder)
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"docker-registry does not run: {log.read_text()}")


def make_certificate(folder: Path, *, address: str = "127.0.0.1") -> Certificate:
    """Make a certificate with the program ``openssl``."""
    need("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(certificate=folder / "certificate.pem", key=folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=upt tests", "-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", str(made.key), "-out", str(made.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return made


def make_htpasswd(path: Path, username: str, password: str) -> Mapping[str, object]:
    """Write a password file; return the registry's setting that uses it."""
    need("htpasswd")
    command = ["htpasswd", "-cbB", "-C", "4", str(path), username, password]
    subprocess.run(command, check=True, capture_output=True)
    return {"htpasswd": {"realm": "tests", "path": str(path)}}


def sign_token(certificate: Certificate, claims: Mapping[str, object]) -> str:
    """Return a JSON Web Token as a registry believes it: RS256 with the certificate inside."""
    lines = certificate.certificate.read_text().splitlines()
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(lines[1:-1])]}
    signed = ".".join(base64_url(json.dumps(part).encode()) for part in (header, claims))
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(certificate.key)],
        input=signed.encode(),
        check=True,
        capture_output=True,
    ).stdout
    return f"{signed}.{base64_url(signature)}"


def base64_url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
