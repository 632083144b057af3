"""The page of a study: people answer pair by pair, the administrator invites and looks on.

    /a/LINK        a person's own: the warning, then one pair after another; /a/LINK/last, the
                   answer before, to be changed
    /admin/LINK    invitations, and how far the study is
    /join/LINK     for a crowd: ?PROLIFIC_PID=... is who comes, and is sent to a link of their own

No page says which model gave a reply, nor which item is a check or shown again.
"""

from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flatgd.annotate.pairs import NAMED
from flatgd.annotate.study import CHOICES, Study, field_of, turns_of
from flatgd.annotate.tally import progress, shown
from flatgd.annotate.votes import Person, Votes
from flatgd.errors import RecipeError
from flatgd.web.site import Site, is_secret

COMPLETED = "https://app.prolific.com/submissions/complete?cc="


class StudyPage:
    """The routes of a study's page. `base` is what its links begin with, `code` the completion
    code of a study on Prolific."""

    def __init__(self, study: Study, votes: Votes, base: str, code: str | None = None):
        self.study, self.votes, self.base, self.code = study, votes, base, code
        self.site = Site(votes.secret("forms"))
        self._admin, self._join = votes.secret("admin"), votes.secret("join")
        self._items = {item["id"]: item for item in study.items}

    def application(self) -> ASGIApp:
        """The ASGI application."""
        both = ["GET", "POST"]
        routes = [
            Route("/a/{link}", self.person, methods=both),
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
        """What Prolific is given as the study's URL."""
        return (
            f"{self.base}/join/{self._join}?PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}"
            "&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
        )

    def link_of(self, token: str) -> str:
        return f"{self.base}/a/{token}"

    async def person(self, request: Request) -> Response:
        """What is next for a person; or their answer."""
        if request.method == "POST":
            form = await self.site.form(request)
            return self._answer(self._who(request), form)
        who = self._who(request)
        if who.agreed is None:
            return self._page(who, "consent.html", consent=self.study.consent)
        item = self.votes.next(who.token)
        if item is None:
            is_waiting = self.votes.is_waiting(who.token)
            is_paid = self.code and self.votes.done(who.token)
            back = COMPLETED + quote(str(self.code)) if is_paid else None
            return self._page(who, "done.html", back=back, code=self.code, is_waiting=is_waiting)
        lost = "lost" in request.query_params
        return self._pair(who, item, {}, lost=lost)

    async def agree(self, request: Request) -> Response:
        await self.site.form(request)
        who = self._who(request)
        self.votes.agree(who.token)
        return _see(f"/a/{who.token}")

    async def last(self, request: Request) -> Response:
        """The answer before, to be changed."""
        who = self._who(request)
        found = self.votes.last(who.token)
        return self._pair(who, *found, again=True) if found else _see(f"/a/{who.token}")

    def _answer(self, who: Person, form: dict[str, str]) -> Response:
        item = form.get("item", "")
        choices = {name: form.get(field_of(name), "") for name in self.study.questions}
        if item not in self._items or who.agreed is None:
            raise HTTPException(404)
        if not set(choices.values()) <= set(CHOICES):
            return self._pair(who, item, choices, missed=True)
        is_kept = self.votes.vote(who.token, item, choices)
        return _see(f"/a/{who.token}" + ("" if is_kept else "?lost"))

    async def join(self, request: Request) -> Response:
        """A person whom Prolific sends."""
        name = request.query_params.get("PROLIFIC_PID", "")
        if not is_secret(request.path_params["link"], self._join) or "{{" in name:
            raise HTTPException(404)
        try:
            return _see(f"/a/{self.votes.invite(name)}")
        except RecipeError:
            raise HTTPException(404) from None

    async def admin(self, request: Request) -> Response:
        """Invitations, and how far the study is; not who wins, which would tempt to stop early."""
        link = request.path_params["link"]
        if not is_secret(link, self._admin):
            raise HTTPException(404)
        if request.method == "POST":
            form = await self.site.form(request)
            for name in filter(str.strip, form.get("names", "").splitlines()):
                self.votes.invite(name)
            if "remove" in form:
                self.votes.remove(form["remove"])
            return _see(f"/admin/{link}")
        return self.site.page("admin.html", **self._state(link))

    def _state(self, link: str) -> dict[str, Any]:
        found = progress(self.study, self.votes.answers())
        given = {row["annotator"]: row for row in found["annotators"]}
        done, wanted = self.votes.counted()
        return {
            "mark": self.site.mark(link),
            "done": done,
            "wanted": wanted,
            "people": [
                {
                    "name": person.name,
                    "token": person.token,
                    "link": self.link_of(person.token),
                    "done": self.votes.done(person.token),
                    "is_removed": person.removed is not None,
                    "has_agreed": person.agreed is not None,
                    **_quality(given.get(person.name, {})),
                }
                for person in self.votes.people()
            ],
            "agreement": [
                {name: shown(value, 2) for name, value in row.items()} for row in found["agreement"]
            ],
            "join": self.join_link if self.code else None,
        }

    def _who(self, request: Request) -> Person:
        who = self.votes.person(request.path_params["link"])
        if who is None:
            raise HTTPException(404)
        if who.removed is not None:
            raise HTTPException(410)
        return who

    def _pair(
        self,
        who: Person,
        item: str,
        choices: dict[str, str],
        lost: bool = False,
        again: bool = False,
        missed: bool = False,
    ) -> Response:
        return self._page(
            who,
            "pair.html",
            item=self._items[item],
            turns=turns_of(self._items[item]),
            questions=[(name, field_of(name), text) for name, text in self.study.questions.items()],
            choices=choices,
            named=NAMED,
            lost=lost,
            again=again,
            missed=missed,
            has_last=not again and self.votes.done(who.token) > 0,
        )

    def _page(self, who: Person, name: str, **values: Any) -> Response:
        return self.site.page(
            name,
            link=who.token,
            mark=self.site.mark(who.token),
            progress=self.votes.progress(who.token),
            instructions=self.study.instructions,
            **values,
        )


def _see(path: str) -> Response:
    """On to another page, by GET."""
    return RedirectResponse(path, status_code=303)


def _quality(row: dict[str, Any]) -> dict[str, str]:
    names = ("median_seconds", "with_majority", "same_twice", "checks_passed")
    return {name: "–" if row.get(name) is None else shown(row[name], 2) for name in names}
