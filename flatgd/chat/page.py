"""A chat in the browser: the same session, on a page that only its link opens."""

import asyncio
import secrets
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flatgd.chat.session import Session, SessionFile, number_in
from flatgd.errors import RecipeError
from flatgd.web.site import Site, is_secret

MOST = 20  # replies of each model at once


class ChatPage:
    """The routes of one session's page. `file` is written after every change, None where nothing
    is kept."""

    def __init__(self, session: Session, base: str, file: SessionFile | None = None):
        self.session, self.base, self.file = session, base, file
        self.token = secrets.token_hex(16)
        self.site = Site(secrets.token_hex(16))
        self._turn = asyncio.Lock()  # one thing at a time is said

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
        """The conversation; or what is said or done next."""
        self._check(request)
        if request.method == "POST":
            form = await self.site.form(request)
            async with self._turn:
                try:
                    await run_in_threadpool(self._do, form)
                except (ValueError, RecipeError) as error:
                    return self._page(str(error))
            judged = "?judge" if "judge" in form else ""
            return RedirectResponse(f"/chat/{self.token}{judged}#last", 303)
        is_judged = "judge" in request.query_params
        async with self._turn:
            if not is_judged or not self.session.turns:
                return self._page(judge=is_judged)
            try:
                return self._page(judge=True, scores=await run_in_threadpool(self.session.scores))
            except ValueError as error:
                return self._page(str(error), judge=True)

    async def saved(self, request: Request) -> Response:
        """The session as a file."""
        self._check(request)
        named = {"Content-Disposition": 'attachment; filename="session.jsonl"'}
        return Response(self.session.text(), media_type="application/jsonl", headers=named)

    def _do(self, form: dict[str, str]) -> None:
        if "reset" in form:
            self.session.reset()
        elif "pick" in form:
            self.session.pick(number_in(form["pick"]))
        elif "toxic" in form or "safe" in form:
            number = number_in(form.get("toxic", form.get("safe", "")))
            self.session.mark(number, "safe" in form)
        else:
            self.session.samples = min(MOST, max(1, number_in(form.get("samples", "1"))))
            self.session.say(form.get("say", ""))
        if self.file:
            self.file.write(self.session)

    def _check(self, request: Request) -> None:
        if not is_secret(request.path_params["link"], self.token):
            raise HTTPException(404)

    def _page(self, fault: str = "", judge: bool = False, scores: Sequence[float] = ()) -> Response:
        session = self.session
        return self.site.page(
            "chat.html",
            link=self.token,
            mark=self.site.mark(self.token),
            names=list(session.speakers),
            turns=session.turns,
            samples=session.samples,
            has_judge=session.judge is not None,
            file=str(self.file.path) if self.file else "",
            fault=fault,
            judge=judge,
            scores=scores,
        )
