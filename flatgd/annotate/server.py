"""The page of a study: annotators answer pair by pair, the administrator invites and watches.

    /a/LINK        an annotator's own page: the content warning, then one pair after another
    /a/LINK/last   the last answer, to be changed
    /admin/LINK    invitations and progress
    /join/LINK     the entry for Prolific: ?PROLIFIC_PID=ID leads to that participant's own page

No page says which model gave a reply, or which item is a check or a repeat.
"""

from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flatgd.annotate.pairs import LABELS
from flatgd.annotate.rows import AnnotatorRow
from flatgd.annotate.study import CHOICES, Study, field_of, turns_of
from flatgd.annotate.tally import progress, shown
from flatgd.annotate.votes import Annotator, Votes
from flatgd.errors import UsageError
from flatgd.web.site import Site, is_secret

COMPLETION_URL = "https://app.prolific.com/submissions/complete?cc="


class StudyPage:
    """The routes of a study's page.

    `base` is the beginning of its links, `code` the completion code of a study on Prolific.
    """

    def __init__(self, study: Study, votes: Votes, base: str, code: str | None = None):
        self.study, self.votes, self.base, self.code = study, votes, base, code
        self.site = Site(votes.secret("forms"))
        self._admin, self._join = votes.secret("admin"), votes.secret("join")
        self._items = {item["id"]: item for item in study.items}

    def application(self) -> ASGIApp:
        """The ASGI application."""
        both = ["GET", "POST"]
        routes = [
            Route("/a/{link}", self.annotator, methods=both),
            Route("/a/{link}/agree", self.agree, methods=["POST"]),
            Route("/a/{link}/last", self.last),
            Route("/admin/{link}", self.admin, methods=both),
            Route("/join/{link}", self.join),
        ]
        return self.site.application(routes, self.base)

    @property
    def admin_link(self) -> str:
        return f"{self.base}/admin/{self._admin}"

    @property
    def join_link(self) -> str:
        """The study URL to enter on Prolific, which fills in the placeholders."""
        return (
            f"{self.base}/join/{self._join}?PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}"
            "&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
        )

    def link_of(self, token: str) -> str:
        return f"{self.base}/a/{token}"

    async def annotator(self, request: Request) -> Response:
        """Show an annotator what comes next, or take their answer."""
        if request.method == "POST":
            form = await self.site.form(request)
            return self._answer(self._annotator(request), form)
        annotator = self._annotator(request)
        if annotator.agreed is None:
            return self._page(annotator, "consent.html", consent=self.study.consent)
        item = self.votes.next(annotator.token)
        if item is None:
            is_waiting = self.votes.is_waiting(annotator.token)
            is_paid = self.code and self.votes.done(annotator.token)
            back = COMPLETION_URL + quote(str(self.code)) if is_paid else None
            values = {"back": back, "code": self.code, "is_waiting": is_waiting}
            return self._page(annotator, "done.html", **values)
        return self._pair(annotator, item, {}, is_late="late" in request.query_params)

    async def agree(self, request: Request) -> Response:
        """Record that the annotator accepts the content warning."""
        await self.site.form(request)
        annotator = self._annotator(request)
        self.votes.agree(annotator.token)
        return _see(f"/a/{annotator.token}")

    async def last(self, request: Request) -> Response:
        """Show the last answer, to be changed."""
        annotator = self._annotator(request)
        if not (found := self.votes.last(annotator.token)):
            return _see(f"/a/{annotator.token}")
        return self._pair(annotator, *found, is_change=True)

    def _answer(self, annotator: Annotator, form: dict[str, str]) -> Response:
        item = form.get("item", "")
        choices = {name: form.get(field_of(name), "") for name in self.study.questions}
        if item not in self._items or annotator.agreed is None:
            raise HTTPException(404)
        if not set(choices.values()) <= set(CHOICES):
            return self._pair(annotator, item, choices, is_incomplete=True)
        is_stored = self.votes.vote(annotator.token, item, choices)
        return _see(f"/a/{annotator.token}" + ("" if is_stored else "?late"))

    async def join(self, request: Request) -> Response:
        """Lead a participant from Prolific to their own page."""
        if not is_secret(request.path_params["link"], self._join):
            raise HTTPException(404)
        participant = request.query_params.get("PROLIFIC_PID", "")
        try:
            return _see(f"/a/{self.votes.join_from_prolific(participant)}")
        except ValueError:
            raise HTTPException(404) from None

    async def admin(self, request: Request) -> Response:
        """Invitations and progress. It does not say who wins, which would tempt to stop early."""
        link = request.path_params["link"]
        if not is_secret(link, self._admin):
            raise HTTPException(404)
        if request.method == "POST":
            form = await self.site.form(request)
            try:
                for name in filter(str.strip, form.get("names", "").splitlines()):
                    self.votes.invite(name)
            except UsageError as error:
                return self.site.page("error.html", 400, message=str(error))
            if "remove" in form:
                self.votes.remove(form["remove"])
            return _see(f"/admin/{link}")
        return self.site.page("admin.html", **self._admin_values(link))

    def _admin_values(self, link: str) -> dict[str, Any]:
        """The values of the administrator's page."""
        found = progress(self.study, self.votes.answers())
        figures = {row["annotator"]: row for row in found["annotators"]}
        done, wanted = self.votes.answer_counts()
        return {
            "csrf": self.site.csrf_token(link),
            "done": done,
            "wanted": wanted,
            "annotators": [
                {
                    "name": annotator.name,
                    "token": annotator.token,
                    "link": self.link_of(annotator.token),
                    "done": self.votes.done(annotator.token),
                    "is_removed": annotator.removed is not None,
                    "has_agreed": annotator.agreed is not None,
                    **_quality(figures.get(annotator.name)),
                }
                for annotator in self.votes.annotators()
            ],
            "agreement": [
                {name: shown(value, 2) for name, value in row.items()} for row in found["agreement"]
            ],
            "join": self.join_link if self.code else None,
        }

    def _annotator(self, request: Request) -> Annotator:
        """The holder of the request's link. HTTPException 404 or 410 if there is none."""
        annotator = self.votes.annotator(request.path_params["link"])
        if annotator is None:
            raise HTTPException(404)
        if annotator.removed is not None:
            raise HTTPException(410)
        return annotator

    def _pair(
        self,
        annotator: Annotator,
        item: str,
        choices: dict[str, str],
        is_late: bool = False,
        is_change: bool = False,
        is_incomplete: bool = False,
    ) -> Response:
        """The form of an item. `choices` are preselected."""
        return self._page(
            annotator,
            "pair.html",
            item=self._items[item],
            turns=turns_of(self._items[item]),
            questions=[(name, field_of(name), text) for name, text in self.study.questions.items()],
            choices=choices,
            labels=LABELS,
            is_late=is_late,
            is_change=is_change,
            is_incomplete=is_incomplete,
            has_last=not is_change and self.votes.done(annotator.token) > 0,
        )

    def _page(self, annotator: Annotator, name: str, **values: Any) -> Response:
        return self.site.page(
            name,
            link=annotator.token,
            csrf=self.site.csrf_token(annotator.token),
            progress=self.votes.progress(annotator.token),
            instructions=self.study.instructions,
            **values,
        )


def _see(path: str) -> Response:
    """Redirect to another page, which the browser requests by GET."""
    return RedirectResponse(path, status_code=303)


def _quality(row: AnnotatorRow | None) -> dict[str, str]:
    """Cells about how an annotator answers; a dash for a figure that is undefined."""
    names = ("median_seconds", "with_majority", "same_twice", "checks_passed")
    values: dict[str, Any] = {} if row is None else {**row}
    return {n: "–" if values.get(n) is None else shown(values[n], 2) for n in names}
