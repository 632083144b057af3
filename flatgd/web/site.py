"""What all pages share: templates, forms, security headers, limits, and the server.

Every request passes the guards: only our own hosts are answered; headers forbid loading or running
anything that is not ours; forms need a token that only our pages have (against cross-site request
forgery), must come from our origin, and are limited in size; each client is limited in how fast it
may ask, and in how often it may be refused.
"""

import hmac
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flatgd.errors import UsageError
from flatgd.web.connection import LimitedConnection

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGES = Path(str(files("flatgd.web") / "pages"))
STATIC = {"palette.css": "text/css", "style.css": "text/css", "page.js": "text/javascript"}
MAX_FORM_BYTES = 64 * 1024
RATE, BURST = 40, 200  # requests a second in the long run, and at once, of a client to one link
MAX_REFUSED, REFUSED_SECONDS = 60, 60.0  # refused requests of a client within so many seconds
MAX_CLIENTS = 10_000  # clients and links that the limits remember
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # links are secrets
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex, nofollow",
}
ERRORS = {
    400: "The request is not one that this page sends.",
    403: "This form is not from this page. Open your link again.",
    404: "There is nothing here. Each page has its own link; check that you copied the whole link.",
    405: "This page does not support that method.",
    410: "This link has been closed.",
    413: "The form is too long.",
    429: "Too many requests. Wait a minute, then open the link again.",
    500: "Something went wrong. Everything that you saved is kept; open your link again.",
}


def is_secret(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


class Site:
    """Pages behind links that cannot be guessed. `secret` is the key of the forms' tokens."""

    def __init__(self, secret: str):
        self._secret = secret.encode()
        self._pages = Environment(
            loader=FileSystemLoader(PAGES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._pages.get_template(name).render(**values), status)

    def csrf_token(self, link: str) -> str:
        """The token in the forms of a link, which the pages of other sites cannot know."""
        return hmac.new(self._secret, link.encode(), "sha256").hexdigest()

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form. HTTPException 400 or 403 if it is not one of ours."""
        try:
            body = (await request.body()).decode("utf-8", "replace")
            fields = dict(parse_qsl(body, keep_blank_values=True, max_num_fields=100))
        except (ClientDisconnect, ValueError):
            raise HTTPException(400) from None
        expected = self.csrf_token(request.path_params["link"])
        if not is_secret(fields.pop("csrf", ""), expected):
            raise HTTPException(403)
        return fields

    def application(self, routes: Sequence[Route], base: str) -> ASGIApp:
        """An ASGI application for links that begin with `base`."""

        async def error_page(request: Request, error: Exception) -> Response:
            status = error.status_code if isinstance(error, HTTPException) else 500
            return self.page("error.html", status, message=ERRORS.get(status, ERRORS[500]))

        application = Starlette(
            routes=[*routes, Route("/static/{name}", _static)],
            exception_handlers={HTTPException: error_page, 500: error_page},
        )
        application.router.redirect_slashes = False
        return Guard(application, base)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    headers = {"Cache-Control": "max-age=600"}
    return Response((PAGES / name).read_bytes(), media_type=STATIC[name], headers=headers)


class Guard:
    """ASGI middleware: hosts, headers, size, origin and rates. `clock` gives seconds."""

    def __init__(self, app: ASGIApp, base: str = "", clock: Callable[[], float] = time.monotonic):
        self.app, self.clock, self._own = app, clock, urlsplit(base).netloc
        self._hosts = {*LOOPBACK, urlsplit(base).hostname}
        self._refused: dict[str, deque[float]] = {}  # times, by client
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = (scope.get("client") or ("", 0))[0]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        is_replaced = False

        async def limit_refusals(message: Message) -> None:
            """Answer 429 in place of a refusal to a client that is refused too often. Requests with
            a valid link still succeed."""
            nonlocal is_replaced
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                is_replaced = self._is_refused_too_often(client)
                if is_replaced:
                    await _plain(429, with_headers)
            if not is_replaced:
                await with_headers(message)

        if status := self._refusal(scope, client):
            await _plain(status, with_headers)
            return
        await self.app(scope, _size_limited(receive), limit_refusals)

    def _refusal(self, scope: Scope, client: str) -> int | None:
        """The status of a request that is refused by its head alone."""
        headers = Headers(scope=scope)
        if _host(headers.get("host", "")) not in self._hosts:
            return 400
        if self._is_too_fast(scope["path"], client):
            return 429
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403
        origin = headers.get("origin")
        own = (headers.get("host"), self._own)
        if origin is not None and origin.partition("://")[2] not in own:
            return 403
        length = headers.get("content-length", "0")
        return None if length.isdecimal() and int(length) <= MAX_FORM_BYTES else 413

    def _is_refused_too_often(self, client: str) -> bool:
        """Count one more refused request of a client."""
        now = self.clock()
        if len(self._refused) > MAX_CLIENTS:
            self._refused.clear()
        times = self._refused.setdefault(client, deque(maxlen=MAX_REFUSED + 1))
        times.append(now)
        return len(times) > MAX_REFUSED and times[0] > now - REFUSED_SECONDS

    def _is_too_fast(self, path: str, client: str) -> bool:
        """Take one request from the token bucket of a client and a link."""
        now = self.clock()
        if len(self._buckets) > MAX_CLIENTS:  # a study has few links, so most of these are guesses
            self._buckets.clear()
        name = f"{client} {'/'.join(path.split('/')[:3])}"
        left, since = self._buckets.get(name, (float(BURST), now))
        left = min(float(BURST), left + (now - since) * RATE)
        self._buckets[name] = (max(0.0, left - 1), now)
        return left < 1


def _host(text: str) -> str | None:
    """The name or address in a Host header, None if it has none."""
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


async def _plain(status: int, send: Send) -> None:
    """Send a refusal as plain text."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 429:
        headers.append((b"retry-after", b"60"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": ERRORS[status].encode()})


def _size_limited(receive: Receive) -> Receive:
    """Stop reading a body that is too long. It may come in pieces, without a Content-Length."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_FORM_BYTES:
            raise HTTPException(413)
        return message

    return limited


def bind_port(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free port. Raises UsageError if the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port with `--port`."
        ) from None


def base_url(listener: socket.socket, url: str | None) -> str:
    """The beginning of the page's links. Raises UsageError if `url` is not a URL's beginning, or is
    missing although other machines can connect."""
    host, port = listener.getsockname()[:2]
    if url is None:
        if host not in LOOPBACK:
            raise UsageError(
                f"Other machines can connect to {host}. Put a proxy with TLS in front and give the "
                "address that browsers use, for example `--url https://study.example.org`."
            )
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        parts = urlsplit(url)
        is_base = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        is_base = None
    if not is_base or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(
            f"`--url` must be the beginning of a link, like https://study.example.org; got {url!r}"
        )
    return url.rstrip("/")


def make_server(application: ASGIApp) -> uvicorn.Server:
    """The HTTP server. It does not log requests, because links are secrets.

    It does not believe `X-Forwarded-For`, which any client can send: with a proxy in front, the
    limits apply to the proxy's address.
    """
    config = uvicorn.Config(
        application,
        access_log=False,
        log_level="warning",
        server_header=False,
        http=LimitedConnection,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
