"""Who makes the call at hand, and whether that caller may do what it asks for.

The guards of both edges say who it is when a call comes in; the engine asks when it knows which
adapters are meant. In between the caller travels in the call's own context, so that no RPC can
forget to hand it on. Owned by the event loop; it knows no protocol but the form of ``Bearer``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from time import monotonic

from upt_server.access.quotas import RateLimit
from upt_server.access.scopes import Need
from upt_server.access.tokens import ALL_ADAPTERS, Scope, Token, TokenFile
from upt_server.scheduling import PRIORITIES, Priority
from upt_zoo.errors import (
    AdapterNotFound,
    Forbidden,
    InvalidInput,
    Overloaded,
    Unauthenticated,
)

_SCHEME = "bearer "
_MAX_SECRET_CHARS = 256
# open at once by one token; of all callers together a server takes 1024 each over gRPC and HTTP
_MAX_CALLS, _MAX_STREAMS = 512, 64
_SAID = "expected `authorization: Bearer TOKEN` with a token of this server"
_NOT_HERE = "no such adapter, version or tag; `upt-server ls` lists what this token may ask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call: a token, or anybody where the server knows no tokens.

    ``request_key`` is the caller's own word for whom the call is made; equal keys get equal routes.
    ``priority`` is the caller's own too: who can wait says so.
    """

    token: Token | None
    request_key: str | None = None
    priority: Priority = "normal"

    @property
    def name(self) -> str:
        """The token's name; ``anybody`` without one."""
        return self.token.name if self.token else "anybody"


# with who let it in, since tests and programs may hold several servers
_CALLER: "ContextVar[tuple[Access, Caller] | None]" = ContextVar("caller", default=None)


class _Usage:
    """What a token uses at the moment."""

    def __init__(self, rate: RateLimit | None) -> None:
        self.rate = rate
        self.queued_tokens = 0
        self.calls = 0
        self.streams = 0


class Access:
    """Decides who may do what. Without ``tokens`` anybody may, but for ``admin`` from elsewhere.

    ``is_local``: only this machine reaches the server.
    """

    def __init__(
        self,
        tokens: TokenFile | None = None,
        *,
        is_local: bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._tokens, self._clock = tokens, clock
        self._scopes_of_anybody: Sequence[Scope] = (
            ("predict", "metadata", "admin") if is_local else ("predict", "metadata")
        )
        self._usage: dict[str, _Usage] = {}  # by the names of tokens

    def admit(
        self,
        need: Need,
        authorization: Sequence[str],
        request_key: str | None = None,
        *,
        priority: str = "normal",
    ) -> Caller | None:
        """Let a call in and remember for whom; ``authorization`` are all headers of that name.

        None where the call is open to everybody.

        Raises:
            Forbidden: the caller may not do this.
            InvalidInput: the priority is none.
            Overloaded: the caller has made too many calls.
            Unauthenticated: no credentials, or wrong ones.
            Unavailable: the tokens cannot be read.
        """
        if need == "open":
            return None
        caller = Caller(
            token=self._authenticate(authorization),
            request_key=request_key,
            priority=_read_priority(priority),
        )
        self._check_scope(caller, need)
        if need != "predict":  # those are counted one by one, since a stream has many
            self._count(caller)
        _CALLER.set((self, caller))
        return caller

    def caller(self) -> Caller:
        """Return who makes the call at hand.

        Raises:
            Unauthenticated: no guard has let it in, though there are tokens.
        """
        known = _CALLER.get()
        if known is not None and known[0] is self:
            return known[1]
        if self._tokens is None:
            return Caller(token=None)
        raise Unauthenticated(_SAID)

    def name_at_hand(self) -> str | None:
        """Name who makes the call at hand; None where nobody was let in."""
        known = _CALLER.get()
        return known[1].name if known is not None and known[0] is self else None

    def allows(self, adapter: str) -> bool:
        """Tell whether the caller may ask an adapter of this name."""
        token = self.caller().token
        return token is None or token.allows(adapter)

    def check_adapters(self, names: Iterable[str]) -> None:
        """Check that the caller may ask adapters of these names, whether or not they exist.

        Raises:
            Forbidden: not all of them.
        """
        for name in names:
            if not self.allows(name):
                raise Forbidden(f"this token may not ask the adapter {name}; use another token")

    def check_all_adapters(self) -> None:
        """Check that the caller may know of every adapter.

        Raises:
            Forbidden: only of some.
        """
        if not self._may_know_all():
            raise Forbidden("this call tells of all adapters; use a token for *")

    @contextmanager
    def discreet(self) -> Iterator[None]:
        """Let no error name adapters that the caller may not ask.

        Raises:
            AdapterNotFound: as it came to who may know all, else in words that name none.
        """
        try:
            yield
        except AdapterNotFound:
            if self._may_know_all():
                raise
            raise AdapterNotFound(_NOT_HERE) from None

    def count_call(self) -> None:
        """Count one prediction of the caller against its rate, by what the tokens say now.

        A stream may have been let in long ago.

        Raises:
            Forbidden: its token no longer has the scope.
            Overloaded: it has made too many; the error says when the next one is let through.
            Unauthenticated: its token has been revoked.
            Unavailable: the tokens cannot be read.
        """
        caller = self.caller()
        if self._tokens is not None and caller.token is not None:
            token = self._tokens.find_hash(caller.token.sha256)
            if token is None:
                raise Unauthenticated(_SAID)
            caller = replace(caller, token=token)
            _CALLER.set((self, caller))
        self._check_scope(caller, "predict")
        self._count(caller)

    def open_call(self, *, is_stream: bool = False) -> AbstractContextManager[None]:
        """Hold the caller's place for one open call; who has no token is not bounded.

        Raises:
            Overloaded: the caller has too many open.
        """
        caller = self.caller()
        return nullcontext() if caller.token is None else self._opened(caller, is_stream)

    @contextmanager
    def _opened(self, caller: Caller, is_stream: bool) -> Iterator[None]:
        usage = self._usage_of(caller)
        if usage.calls >= _MAX_CALLS or (is_stream and usage.streams >= _MAX_STREAMS):
            raise Overloaded(
                f"over the quota of {caller.name}: {usage.calls} calls are open, {usage.streams} "
                f"of them streams, of {_MAX_CALLS} and {_MAX_STREAMS}; close one"
            )
        usage.calls += 1
        usage.streams += is_stream
        try:
            yield
        finally:
            usage.calls -= 1
            usage.streams -= is_stream

    def place(self, tokens: int) -> AbstractContextManager[None]:
        """Hold the caller's place for so many tokens that wait or are computed.

        Raises:
            InvalidInput: they are more than the caller may ever have waiting.
            Overloaded: the caller has too many waiting.
        """
        caller = self.caller()
        limit = caller.token.queued_tokens if caller.token else None
        return nullcontext() if limit is None else self._queued(caller, tokens, limit)

    @contextmanager
    def _queued(self, caller: Caller, tokens: int, limit: int) -> Iterator[None]:
        usage = self._usage_of(caller)
        if tokens > limit:
            raise InvalidInput(
                f"the call has {tokens} tokens, this caller may have {limit} waiting; split it"
            )
        if usage.queued_tokens + tokens > limit:
            raise Overloaded(
                f"over the quota of {caller.name}: {usage.queued_tokens} of {limit} tokens wait"
            )
        usage.queued_tokens += tokens
        try:
            yield
        finally:
            usage.queued_tokens -= tokens

    def _may_know_all(self) -> bool:
        token = self.caller().token
        return token is None or ALL_ADAPTERS in token.adapters

    def _authenticate(self, authorization: Sequence[str]) -> Token | None:
        if self._tokens is None:
            return None
        if len(authorization) != 1:  # of two, which one counts is a matter of opinion
            raise Unauthenticated(_SAID)
        scheme, secret = authorization[0][: len(_SCHEME)], authorization[0][len(_SCHEME) :]
        if scheme.lower() != _SCHEME or len(secret) > _MAX_SECRET_CHARS:
            raise Unauthenticated(_SAID)
        token = self._tokens.find(secret.strip())
        if token is None:
            raise Unauthenticated(_SAID)
        return token

    def _check_scope(self, caller: Caller, need: Scope) -> None:
        scopes = caller.token.scopes if caller.token else self._scopes_of_anybody
        if need not in scopes:
            remedy = "use another token" if caller.token else "start the server with --tokens"
            raise Forbidden(f"this call needs the scope {need}; {remedy}")

    def _count(self, caller: Caller) -> None:
        rate = self._usage_of(caller).rate if caller.token else None
        wait_s = rate.take(self._clock()) if rate else 0.0
        if rate and wait_s:
            raise Overloaded(
                f"over the quota of {caller.name}: {rate.per_second:g} calls a second",
                retry_after_s=wait_s,
            )

    def _usage_of(self, caller: Caller) -> _Usage:
        usage = self._usage.setdefault(caller.name, _Usage(None))
        per_second = caller.token.requests_per_second if caller.token else None
        if per_second != (usage.rate.per_second if usage.rate else None):  # the file has changed
            usage.rate = RateLimit(per_second, self._clock()) if per_second else None
        return usage


def _read_priority(text: str) -> Priority:
    for priority in PRIORITIES:
        if text == priority:
            return priority
    raise InvalidInput(f"expected the priority {' or '.join(PRIORITIES)}, got {text[:40]!r}")
