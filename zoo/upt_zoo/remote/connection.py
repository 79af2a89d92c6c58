"""One registry over HTTP: who we are, what is tried again, and how little is believed.

TLS, but on loopback and with hosts that the user has named. Redirects keep their scheme, and what
identifies us goes to the registry alone. No body is read past the size that was expected, and none
for longer than that takes at a slow pace. What may pass by itself is tried again, a little later
each time. It knows nothing of manifests and blobs; see ``upt_zoo.remote.oci``.

Source: RFC 9110; the token authentication of the CNCF distribution project.
"""

import ipaddress
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from upt_zoo.errors import Corrupt, InvalidInput, Unavailable
from upt_zoo.remote.credentials import Credentials

T = TypeVar("T")
Body = bytes | Iterable[bytes]  # the latter with its Content-Length, and iterable again
_LOG = logging.getLogger(__name__)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_MAX_REDIRECTS = 5
_MAX_SMALL_BYTES = 1024 * 1024  # tokens and messages
_MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry is waited for."""

    attempts: int = 4
    backoff_s: float = 0.5  # before the second attempt; it doubles from there
    timeout_s: float = 30.0  # without any byte
    min_bytes_per_s: float = 10_000.0  # less for longer than ``timeout_s`` is a stall


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The type of the body, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a registry asks for: a password (``basic``), or a token from somewhere (``bearer``)."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        """Where tokens come from."""
        return self.parameters.get("realm", "")


class _Error(BaseModel):
    code: str
    message: str = ""


class _Errors(BaseModel):
    errors: list[_Error]


class _Token(BaseModel):
    token: str = ""
    access_token: str = ""


class Connection:
    """Requests to one registry, ``host[:port]``; of one thread at a time."""

    def __init__(
        self,
        host: str,
        *,
        credentials: Credentials | None = None,
        plain_http: Collection[str] = (),
        patience: Patience | None = None,
    ) -> None:
        self.host = host
        self._credentials = credentials
        self._plain_http = plain_http
        self._patience = patience or Patience()
        self._authorization: str | None = None
        self._origin: httpx2.URL | None = None
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(self._patience.timeout_s),
            headers={"User-Agent": "upt-zoo", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        expected: Collection[int],
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int = _MAX_SMALL_BYTES,
    ) -> Reply:
        """Send and read the answer, several times if need be.

        ``path`` may also be a whole URL, as registries give them. Statuses below 500 that are not
        expected are errors.

        Raises:
            Corrupt: the answer is longer than ``max_bytes``, or not what HTTP allows.
            InvalidInput: the registry does not let us, or the path is somewhere we do not go.
            Unavailable: no connection, no answer in time, or the registry's own fault.
        """

        def attempt() -> Reply:
            with self.open(
                method, path, expected=expected, headers=headers, content=content
            ) as response:
                body = b"".join(self.read(response, max_bytes))
                return Reply(status=response.status_code, headers=response.headers, body=body)

        return self.retry(attempt)

    def retry(self, action: Callable[[], T]) -> T:
        """Do it until it is done, at most as often as patience allows.

        Raises:
            Unavailable: that of the last attempt.
        """
        delay_s = self._patience.backoff_s
        for _ in range(self._patience.attempts - 1):
            try:
                return action()
            except Unavailable as error:
                _LOG.info("%s: %s; trying again", self.host, error)
                wait_s = max(delay_s, min(error.retry_after_s, _MAX_RETRY_AFTER_S))
                time.sleep(
                    wait_s * random.uniform(1.0, 1.25)
                )  # so that clients do not march in step
                delay_s *= 2
        return action()

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        expected: Collection[int],
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Body | None = None,
    ) -> Iterator[httpx2.Response]:
        """Send once; the answer's body is still to be read, with ``read``.

        Raises:
            Corrupt, InvalidInput, Unavailable: see ``request``.
        """
        with self._translated():
            url = self._url(path).copy_merge_params(dict(params or {}))
            response = self._follow(method, url, dict(headers or {}), content)
            try:
                if response.status_code not in expected:
                    raise self._refusal(method, url, response)
                yield response
            finally:
                response.close()

    def read(self, response: httpx2.Response, max_bytes: int) -> Iterator[bytes]:
        """Yield the body in pieces.

        Raises:
            Corrupt: it is longer than ``max_bytes``, whatever was announced, or compressed.
            Unavailable: it comes too slowly.
        """
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Corrupt(f"{self.host}: expected an answer that is not compressed")
        announced = response.headers.get("content-length", "0")
        has_body = response.request.method != "HEAD"
        if has_body and not (announced.isdecimal() and int(announced[:20]) <= max_bytes):
            raise self._too_long(max_bytes)
        patience = self._patience
        deadline = time.monotonic() + patience.timeout_s + max_bytes / patience.min_bytes_per_s
        size = 0
        for piece in response.iter_raw():
            size += len(piece)
            if size > max_bytes:
                raise self._too_long(max_bytes)
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.host} sends too slowly", retry_after_s=0.0)
            yield piece

    def challenge(self) -> Challenge | None:
        """Ask what the registry wants to know of us; None if nothing.

        Raises:
            Corrupt, InvalidInput, Unavailable: see ``request``.
        """

        def attempt() -> Challenge | None:
            with self._translated():
                response = self._send("GET", self._url("/v2/"), {}, None)
                response.close()
                return _challenge(response) if response.status_code == 401 else None

        return self.retry(attempt)

    def token_host(self, challenge: Challenge) -> str:
        """Return the host that a challenge sends us to for a token."""
        return _host(self._token_url(challenge))

    def _url(self, path: str) -> httpx2.URL:
        if self._origin is None:
            self._origin = httpx2.URL(f"{self._scheme()}://{self.host}")
        return self._join(self._origin, path)

    def _scheme(self) -> str:
        """``https``, but for hosts that the user has named, and on loopback without TLS."""
        if self.host in self._plain_http:
            return "http"
        if not is_loopback(self.host):
            return "https"
        try:
            with self._client.stream("GET", f"http://{self.host}/v2/") as response:
                return "https" if response.status_code == 400 else "http"  # 400: speak TLS to me
        except httpx2.TransportError:
            return "https"

    def _join(self, base: httpx2.URL, path: str) -> httpx2.URL:
        """Go on from a URL; nobody sends us to another scheme, nor anywhere without TLS."""
        url, scheme = base.join(path), base.scheme
        host = _host(url)
        may_be_plain = host in self._plain_http or is_loopback(host)
        if url.scheme != scheme or (scheme == "http" and not may_be_plain):
            raise Corrupt(
                f"{self.host} sends us to {url.scheme}://{host}; expected {scheme}, and TLS "
                f"wherever plain_http does not name the host"
            )
        return url

    def _follow(
        self, method: str, url: httpx2.URL, headers: dict[str, str], content: Body | None
    ) -> httpx2.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send_as_us(method, url, headers, content)
            if method not in ("GET", "HEAD") or not response.has_redirect_location:
                return response
            response.close()
            url = self._join(url, response.headers["location"])
        raise Corrupt(f"{self.host}: more than {_MAX_REDIRECTS} redirects")

    def _send_as_us(
        self, method: str, url: httpx2.URL, headers: dict[str, str], content: Body | None
    ) -> httpx2.Response:
        """Send; if the registry asks who we are, say so and send again."""
        if self._origin is None or url.netloc != self._origin.netloc:
            return self._send(method, url, headers, content)
        known = {"Authorization": self._authorization} if self._authorization else {}
        response = self._send(method, url, headers | known, content)
        challenge = _challenge(response) if response.status_code == 401 else None
        if challenge is None:
            return response
        response.close()
        self._authorization = self._answer(challenge)
        return self._send(method, url, headers | {"Authorization": self._authorization}, content)

    def _send(
        self, method: str, url: httpx2.URL, headers: dict[str, str], content: Body | None
    ) -> httpx2.Response:
        request = self._client.build_request(method, url, headers=headers, content=content)
        return self._client.send(request, stream=True)

    def _answer(self, challenge: Challenge) -> str:
        if challenge.scheme == "bearer":
            return f"Bearer {self._token(challenge)}"
        if self._credentials is None:
            raise InvalidInput(f"{self.host} asks who we are; run `upt-zoo login {self.host}`")
        return f"Basic {self._credentials.basic}"

    def _token(self, challenge: Challenge) -> str:
        """Get a token; without credentials, one for everybody."""
        url, headers = self._token_url(challenge), {}
        if self._credentials is not None:
            if _host(url) not in (_host(self._url("/")), self._credentials.token_host):
                raise InvalidInput(
                    f"{self.host} wants us to show our password to {_host(url)}; if that is "
                    f"right, run `upt-zoo login {self.host}`"
                )
            headers = {"Authorization": f"Basic {self._credentials.basic}"}
        parameters = challenge.parameters
        asked = {key: parameters[key] for key in ("service", "scope") if key in parameters}
        response = self._send("GET", url.copy_merge_params(asked), headers, None)
        try:
            if response.status_code != 200:
                raise self._refusal("GET", url, response)
            return _token_of(b"".join(self.read(response, _MAX_SMALL_BYTES)), _host(url))
        finally:
            response.close()

    def _token_url(self, challenge: Challenge) -> httpx2.URL:
        return self._join(self._url("/"), challenge.realm)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Make the HTTP library's errors ours."""
        try:
            yield
        except httpx2.TransportError as error:
            if _is_untrusted(error):
                raise InvalidInput(
                    f"{self.host}: its certificate is not trusted ({error}); name your authority's "
                    f"file in SSL_CERT_FILE"
                ) from error
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.host}: {reason}", retry_after_s=0.0) from error
        except (httpx2.InvalidURL, httpx2.RequestError, httpx2.CookieConflict) as error:
            raise Corrupt(f"{self.host}: not an answer that HTTP allows: {error}") from error

    def _refusal(self, method: str, url: httpx2.URL, response: httpx2.Response) -> Exception:
        status = response.status_code
        path = url.raw_path.decode().partition("?")[0]  # a query may hold a signature
        told = self._reason(response)
        if status in (401, 403):
            return InvalidInput(
                f"{_host(url)} does not let us {method} {path}{told}; "
                f"`upt-zoo login {self.host}` says who we are"
            )
        text = f"{_host(url)}: {method} {path} gives status {status}{told}"
        if status == 429 or status >= 500:
            after = response.headers.get("retry-after", "")
            return Unavailable(text, retry_after_s=float(after) if after.isdecimal() else 0.0)
        return InvalidInput(f"{text}; is it a registry?")

    def _reason(self, response: httpx2.Response) -> str:
        """What a registry's errors say, as far as it can be read."""
        try:
            body = b"".join(self.read(response, _MAX_SMALL_BYTES))
            first = _Errors.model_validate_json(body).errors[0]
            text = f": {first.code} {first.message}"[:300]
            return "".join(letter for letter in text if letter.isprintable())
        except (Corrupt, Unavailable, httpx2.HTTPError, ValidationError, IndexError):
            return ""

    def _too_long(self, max_bytes: int) -> Corrupt:
        return Corrupt(f"{self.host}: expected at most {max_bytes} bytes, got more")


def _challenge(response: httpx2.Response) -> Challenge | None:
    """Read what the registry asks for; a token is preferred to the password."""
    found = {}
    for header in response.headers.get_list("www-authenticate"):
        scheme, _, parameters = header.strip().partition(" ")
        found[scheme.lower()] = dict(_PARAMETER.findall(parameters))
    for scheme in ("bearer", "basic"):
        if scheme in found:
            return Challenge(scheme=scheme, parameters=found[scheme])
    return None


def _token_of(body: bytes, host: str) -> str:
    try:
        values = _Token.model_validate_json(body)
    except ValidationError as error:
        raise Corrupt(f"{host}: expected a token in JSON") from error
    token = values.token or values.access_token
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Corrupt(f"{host}: expected a token that fits into a header")
    return token


def _host(url: httpx2.URL) -> str:
    return url.netloc.decode()


def is_loopback(host: str) -> bool:
    """Tell whether ``host[:port]`` is this machine."""
    name = httpx2.URL(f"http://{host}").host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_untrusted(error: Exception) -> bool:
    """Tell a certificate that does not convince from a connection that fails."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
