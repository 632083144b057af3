"""A chat session on a page in the browser, which only its secret link opens."""

import asyncio
import secrets
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flatgd.chat.session import EXAMPLE, Session, SessionFile, parse_number
from flatgd.errors import UsageError
from flatgd.web.site import Site, is_secret

MAX_SAMPLES = 20  # replies per model to one message


class ChatPage:
    """The routes of one session's page. `file` is written after every change, if there is one."""

    def __init__(self, session: Session, base: str, file: SessionFile | None = None):
        self.session, self.base, self.file = session, base, file
        self.token = secrets.token_hex(16)
        self.site = Site(secrets.token_hex(16))
        self._lock = asyncio.Lock()  # the models answer one request at a time

    @property
    def link(self) -> str:
        return f"{self.base}/chat/{self.token}"

    def application(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/chat/{link}", self.chat, methods=["GET", "POST"]),
            Route("/chat/{link}/session.jsonl", self.saved),
        ]
        return self.site.application(routes, self.base)

    async def chat(self, request: Request) -> Response:
        """Show the conversation, or carry out what a form asks for."""
        self._check(request)
        if request.method == "POST":
            form = await self.site.form(request)
            async with self._lock:
                try:
                    await run_in_threadpool(self._act, form)
                except (ValueError, UsageError) as error:
                    return self._page(str(error))
            query = "?judge" if "judge" in form else ""
            return RedirectResponse(f"/chat/{self.token}{query}#last", 303)
        is_judged = "judge" in request.query_params
        async with self._lock:
            if not is_judged or not self.session.turns:
                return self._page(judge=is_judged)
            try:
                return self._page(judge=True, scores=await run_in_threadpool(self.session.scores))
            except ValueError as error:
                return self._page(str(error), judge=True)

    async def saved(self, request: Request) -> Response:
        """Download the session's file."""
        self._check(request)
        headers = {"Content-Disposition": 'attachment; filename="session.jsonl"'}
        return Response(self.session.text(), media_type="application/jsonl", headers=headers)

    def _act(self, form: dict[str, str]) -> None:
        if "reset" in form:
            self.session.reset()
        elif "pick" in form:
            self.session.pick(parse_number(form["pick"]))
        elif "toxic" in form or "safe" in form:
            number = parse_number(form.get("toxic", form.get("safe", "")))
            self.session.label(number, "safe" in form)
        else:
            self.session.samples = min(MAX_SAMPLES, max(1, parse_number(form.get("samples", "1"))))
            self.session.send(form.get("message", ""))
        if self.file:
            self.file.write(self.session)

    def _check(self, request: Request) -> None:
        if not is_secret(request.path_params["link"], self.token):
            raise HTTPException(404)

    def _page(self, error: str = "", judge: bool = False, scores: Sequence[float] = ()) -> Response:
        session = self.session
        return self.site.page(
            "chat.html",
            link=self.token,
            csrf=self.site.csrf_token(self.token),
            example=EXAMPLE,
            names=list(session.models),
            turns=session.turns,
            samples=session.samples,
            has_judge=session.judge is not None,
            file=str(self.file.path) if self.file else "",
            error=error,
            judge=judge,
            scores=scores,
        )
