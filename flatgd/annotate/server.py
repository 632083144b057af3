"""The page of a study: people answer pair by pair, the administrator invites and looks on.

    /a/LINK        a person's own: the warning, then one pair after another; /a/LINK/last, the
                   answer before, to be changed
    /admin/LINK    invitations, and how far the study is
    /join/LINK     for a crowd: ?PROLIFIC_PID=... is who comes, and is sent to a link of their own

No page says which model gave a reply, nor which item is a check or shown again.
"""

from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from flatgd.annotate.pairs import NAMED
from flatgd.annotate.study import CHOICES, Study
from flatgd.annotate.tally import tally
from flatgd.annotate.votes import Person, Votes
from flatgd.records import clean_text
from flatgd.report.cells import number
from flatgd.web.site import Site

COMPLETED = "https://app.prolific.com/submissions/complete?cc="
LONGEST_NAME = 64


class StudyPage:
    """The routes of a study's page. `base` is what its links begin with, `code` the completion
    code of a study on Prolific."""

    def __init__(self, study: Study, votes: Votes, base: str, code: str | None = None):
        self.study, self.votes, self.base, self.code = study, votes, base, code
        self.site = Site(votes.secret("forms"))
        self._items = {item["id"]: item for item in study.items}

    def application(self) -> Starlette:
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
        return f"{self.base}/admin/{self.votes.secret('admin')}"

    @property
    def join_link(self) -> str:
        """What Prolific is given as the study's URL."""
        return (
            f"{self.base}/join/{self.votes.secret('join')}?PROLIFIC_PID={{{{%PROLIFIC_PID%}}}}"
            "&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
        )

    def link_of(self, token: str) -> str:
        return f"{self.base}/a/{token}"

    async def person(self, request: Request) -> Response:
        """What is next for a person; or their answer."""
        who = self._who(request)
        if request.method == "POST":
            return await self._answer(request, who)
        if who.agreed is None:
            return self._page(who, "consent.html", consent=self.study.consent)
        item = self.votes.next(who.token)
        if item is None:
            done = self.votes.progress(who.token).done
            back = COMPLETED + quote(self.code) if self.code and done else None
            return self._page(who, "done.html", back=back, code=self.code)
        lost = "lost" in request.query_params
        return self._pair(who, item, {}, lost=lost)

    async def agree(self, request: Request) -> Response:
        who = self._who(request)
        await self.site.form(request)
        self.votes.agree(who.token)
        return _see(f"/a/{who.token}")

    async def last(self, request: Request) -> Response:
        """The answer before, to be changed."""
        who = self._who(request)
        found = self.votes.last(who.token)
        return self._pair(who, *found, again=True) if found else _see(f"/a/{who.token}")

    async def _answer(self, request: Request, who: Person) -> Response:
        form = await self.site.form(request)
        item = form.get("item", "")
        choices = {name: form.get(f"q{n}", "") for n, name in enumerate(self.study.questions)}
        if item not in self._items or who.agreed is None:
            raise HTTPException(404)
        if not set(choices.values()) <= set(CHOICES):
            return self._pair(who, item, choices, missed=True)
        is_kept = self.votes.vote(who.token, item, choices)
        return _see(f"/a/{who.token}" + ("" if is_kept else "?lost"))

    async def join(self, request: Request) -> Response:
        """A person whom Prolific sends."""
        name = _name(request.query_params.get("PROLIFIC_PID", ""))
        if request.path_params["link"] != self.votes.secret("join") or not name:
            raise HTTPException(404)
        return _see(f"/a/{self.votes.invite(name)}")

    async def admin(self, request: Request) -> Response:
        """Invitations, and how far the study is; not who wins, which would tempt to stop early."""
        link = request.path_params["link"]
        if link != self.votes.secret("admin"):
            raise HTTPException(404)
        if request.method == "POST":
            form = await self.site.form(request)
            for name in filter(None, map(_name, form.get("names", "").splitlines())):
                self.votes.invite(name)
            if "remove" in form:
                self.votes.remove(form["remove"])
            return _see(f"/admin/{link}")
        return self.site.page("admin.html", **self._state(link))

    def _state(self, link: str) -> dict[str, Any]:
        answers = self.votes.answers()
        found = tally(self.study, answers)
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
                    "progress": self.votes.progress(person.token),
                    "is_removed": person.removed is not None,
                    "has_agreed": person.agreed is not None,
                    **_quality(given.get(person.name, {})),
                }
                for person in self.votes.people()
            ],
            "agreement": [
                {
                    name: number(v, 2) if isinstance(v, float) or v is None else v
                    for name, v in r.items()
                }
                for r in found["agreement"]
            ],
            "join": self.join_link if self.code else None,
        }

    def _who(self, request: Request) -> Person:
        who = self.votes.person(request.path_params["link"])
        if who is None:
            raise HTTPException(404)
        if who.removed is not None:
            raise HTTPException(403)
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
            questions=list(self.study.questions.items()),
            choices=choices,
            named=NAMED,
            lost=lost,
            again=again,
            missed=missed,
            has_last=not again and self.votes.last(who.token) is not None,
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


def _name(text: str) -> str:
    """A person's name as it is kept: on one line, not long."""
    try:
        return clean_text(text)[:LONGEST_NAME]
    except ValueError:
        return ""


def _quality(row: dict[str, Any]) -> dict[str, str]:
    names = ("median_seconds", "with_majority", "same_twice", "checks_passed")
    return {name: number(row.get(name), 2) if row.get(name) is not None else "–" for name in names}
