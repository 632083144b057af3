"""What every page of ours has: its guards, its looks, and a port to be served on.

The guards, around every answer: only hosts that are ours; headers that let nothing run or load that
is not ours; forms that carry a mark which only our pages have (against cross-site request forgery),
from our own origin, of a limited size; a limit on how fast one client may ask, and on how often in
vain.
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
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flatgd.errors import RecipeError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGES = Path(str(files("flatgd.web") / "pages"))
STATIC = {"style.css": "text/css", "page.js": "text/javascript"}
LONGEST = 64 * 1024  # bytes of a form
RATE, BURST = 40, 200  # requests a second, and at once, under one link
VAIN, MINUTE = 60, 60.0  # refused requests of a client in so many seconds
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


def is_secret(given: str, wanted: str) -> bool:
    """Whether they are the same, in a time that tells nothing."""
    return hmac.compare_digest(given.encode(), wanted.encode())


class Site:
    """Pages behind links that cannot be guessed; `secret` marks the forms."""

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

    def mark(self, link: str) -> str:
        """What the forms of a link carry: nobody else's page can know it."""
        return hmac.new(self._secret, link.encode(), "sha256").hexdigest()

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form of ours; HTTPException 403 or 400 for one that is not."""
        body = (await request.body()).decode("utf-8", "replace")
        try:
            fields = dict(parse_qsl(body, keep_blank_values=True, max_num_fields=100))
        except ValueError:
            raise HTTPException(400) from None
        wanted = self.mark(request.path_params["link"])
        if not is_secret(fields.pop("mark", ""), wanted):
            raise HTTPException(403)
        return fields

    def application(self, routes: Sequence[Route], base: str) -> ASGIApp:
        """An ASGI application for links that begin with `base`."""

        async def summarize_error(request: Request, error: Exception) -> Response:
            status = error.status_code if isinstance(error, HTTPException) else 500
            return self.page("told.html", status, said=TOLD.get(status, TOLD[500]))

        application = Starlette(
            routes=[*routes, Route("/static/{name}", _static)],
            exception_handlers={HTTPException: summarize_error, 500: summarize_error},
        )
        application.router.redirect_slashes = False
        return Guard(application, base)


TOLD = {
    400: "This is not asked as this page asks.",
    403: "This form is not from this page. Open your link again.",
    404: "There is nothing here. Pages open by their own links; was yours copied whole?",
    405: "This page is not asked in this way.",
    410: "This link was closed.",
    413: "That is too long.",
    429: "Too many requests. Wait a minute, then open the link again.",
    500: "Something went wrong here. What was saved before is kept; open your link again.",
}


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    kept = {"Cache-Control": "max-age=600"}
    return Response((PAGES / name).read_bytes(), media_type=STATIC[name], headers=kept)


class Guard:
    """ASGI middleware: hosts, headers, size, origin and rate. `clock` gives seconds."""

    def __init__(self, app: ASGIApp, base: str = "", clock: Callable[[], float] = time.monotonic):
        self.app, self.clock, self._own = app, clock, urlsplit(base).netloc
        self._hosts = {*LOOPBACK, urlsplit(base).hostname}
        self._vain: dict[str, deque[float]] = {}
        self._tokens: dict[str, tuple[float, float]] = {}  # left of the burst, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = (scope.get("client") or ("", 0))[0]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        is_refused = False

        async def answered(message: Message) -> None:
            """Who asks in vain too often is told so; whoever has a link is not kept out by them."""
            nonlocal is_refused
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                is_refused = self._is_vain(client)
                if is_refused:
                    await _plain(429, guarded)
            if not is_refused:
                await guarded(message)

        if status := self._refusal(scope, client):
            await _plain(status, guarded)
            return
        await self.app(scope, _limited(receive), answered)

    def _refusal(self, scope: Scope, client: str) -> int | None:
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
        return None if length.isdecimal() and int(length) <= LONGEST else 413

    def _is_vain(self, client: str) -> bool:
        """Whether a client has been refused too often; this time counts."""
        now = self.clock()
        if len(self._vain) > 10_000:
            self._vain.clear()
        vain = self._vain.setdefault(client, deque(maxlen=VAIN + 1))
        vain.append(now)
        return len(vain) > VAIN and vain[0] > now - MINUTE

    def _is_too_fast(self, path: str, client: str) -> bool:
        now = self.clock()
        if len(self._tokens) > 10_000:  # links are few; these are guesses
            self._tokens.clear()
        link = f"{client} {'/'.join(path.split('/')[:3])}"
        left, when = self._tokens.get(link, (float(BURST), now))
        left = min(float(BURST), left + (now - when) * RATE)
        self._tokens[link] = (max(0.0, left - 1), now)
        return left < 1


def _host(text: str) -> str | None:
    """The name or address in a Host header."""
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


async def _plain(status: int, send: Send) -> None:
    """A refusal, in words."""
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    again = [(b"retry-after", b"60")] if status == 429 else []
    await send({"type": "http.response.start", "status": status, "headers": kind + again})
    await send({"type": "http.response.body", "body": TOLD[status].encode()})


def _limited(receive: Receive) -> Receive:
    """A body sent in pieces, without a length, is cut off where it gets too long."""
    seen = 0

    async def piece() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LONGEST:
            raise HTTPException(413)
        return message

    return piece


def port_at(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one. Raises RecipeError when there is none."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RecipeError(
            f"{host}:{port} cannot be served on: {error.strerror}; --port takes another one"
        ) from None


def address(at: socket.socket, url: str | None) -> str:
    """What links begin with. Raises RecipeError where others can come in and no `url` is given."""
    host, port = at.getsockname()[:2]
    if url is None:
        if host not in LOOPBACK:
            raise RecipeError(
                f"{host} lets others in, so give --url, what their browsers will call this: "
                "https://study.example.org, with a proxy before it that speaks TLS"
            )
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        parts = urlsplit(url)
        is_beginning = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        is_beginning = None
    if not is_beginning or parts.path.strip("/") or parts.query or parts.fragment:
        raise RecipeError(f"--url is the beginning of a link, as https://example.org, got {url!r}")
    return url.rstrip("/")


def server(application: ASGIApp) -> uvicorn.Server:
    """What serves it. Requests are not logged: links are secrets."""
    config = uvicorn.Config(
        application,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=512,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
