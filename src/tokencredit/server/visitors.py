"""Who may ask a server that asks for no token: no page of another site.

Such a server is kept by nothing but its address, and a browser reaches this machine's addresses for
any page that it shows. A page may send a form to another address, which is seen by `Origin` and by
a body that is not declared as JSON; or its own name may begin to stand for this machine (DNS
rebinding), which is seen by `Host`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tokencredit.server.refusals import RefusedError, told

_JSON_PATHS = ("/score", "/get_reward")


@dataclass(frozen=True)
class Visitors:
    """The application behind these checks.

    Attributes:
        app: that answers whoever passes.
        hosts: names that a request may be for, besides addresses in numbers; None allows any.
    """

    app: ASGIApp
    hosts: Sequence[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or refuse it."""
        if scope["type"] == "http":
            refusal = refused_visit(
                Headers(scope=scope), scope["method"], scope["path"], hosts=self.hosts
            )
            if refusal is not None:
                await told(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def refused_visit(
    headers: Headers, method: str, path: str, *, hosts: Sequence[str] | None
) -> RefusedError | None:
    """Why a request is not answered, or None.

    Args:
        headers: of the request.
        method: of HTTP.
        path: that it asks for.
        hosts: as in `Visitors`.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    named = _name(host)
    if host and hosts is not None and not _is_number(named) and named not in map(_name, hosts):
        return RefusedError(
            403,
            "ForbiddenHost",
            f"the request is for {host[:60]!a}; expected a name or an address of this machine: "
            "name it in connections.hosts if it is one, or ask for a token",
        )
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return RefusedError(
            403,
            "ForbiddenOrigin",
            f"the request comes from a page of {origin[:60]!a}; expected one of {host[:60]!a}, "
            "since the server asks for no token",
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and path in _JSON_PATHS and not _is_json(kind):
        return RefusedError(
            415,
            "UnsupportedMediaType",
            f"the body is declared as {kind[:60]!a}; expected the header `Content-Type: "
            "application/json`, since the server asks for no token",
        )
    return None


def _name(host: str) -> str:
    """A host without its port, as names are compared.

    >>> _name("LocalHost.:8000"), _name("[::1]:8000")
    ('localhost', '::1')
    """
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_number(name: str) -> bool:
    """Whether this is an address, which no name server can give another meaning."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
