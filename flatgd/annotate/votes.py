"""Who was invited to a study, who is looking at which item, and what was answered: votes.db.

Whoever is shown an item holds a seat on it for a while, and an item is shown to no more people than
it still wants answers, so that each gets exactly as many as it is to have, however people come and
go. A seat that has run out is given to somebody else; whoever held it may still answer as long as
there is room. What `vote` has returned True for is on the disk.

A link is a token that cannot be guessed; all that is known of a person is a name.
"""

import json
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flatgd.annotate.study import Answer, Study, last_said, load_answers
from flatgd.errors import DataError, Problem

HOLD = 30 * 60  # seconds that a seat is held
APART = 5  # answers between an item and its being shown again
SCHEMA = """
create table if not exists about (name text primary key, value text not null);
create table if not exists people (
    token text primary key, name text unique not null, invited real not null, agreed real,
    removed real);
create table if not exists seats (
    item text, token text references people, shown real not null, until real not null,
    primary key (item, token));
create table if not exists answers (
    item text, token text references people, choices text not null, seconds real not null,
    at real not null, primary key (item, token));
"""


class Person(NamedTuple):
    """Who holds a link. `agreed`: to go on after the warning; `removed`: their answers do not
    count; seconds since 1970."""

    token: str
    name: str
    agreed: float | None
    removed: float | None


class Progress(NamedTuple):
    """Items that a person has answered, and that are left to them."""

    done: int
    left: int


class Votes:
    """The votes of a study, of one process at a time. `each`: items a person, None for all there
    are. `clock` gives seconds since 1970."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        each: int | None = None,
        hold: float = HOLD,
        clock: Callable[[], float] = time.time,
    ):
        self.study, self.each, self.hold, self.clock = study, each, hold, clock
        self._items = {item["id"]: item for item in study.items}
        self._repeats = {key.id: key.repeats for key in study.keys}
        try:
            self._db = sqlite3.connect(folder / "votes.db", isolation_level=None, timeout=30)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(SCHEMA)
            self._refuse_others(folder / "votes.db")
        except sqlite3.Error as error:
            raise DataError([Problem(str(folder / "votes.db"), 0, str(error))]) from None

    def secret(self, name: str) -> str:
        """One of the study's secrets, made when it is first asked for."""
        made = secrets.token_urlsafe(24)
        self._db.execute("insert or ignore into about values (?, ?)", (name, made))
        ((value,),) = self._db.execute("select value from about where name = ?", (name,))
        return str(value)

    def invite(self, name: str) -> str:
        """The token of a person of this name, who is new or was invited before."""
        row = (secrets.token_urlsafe(24), name, self.clock())
        self._db.execute(
            "insert or ignore into people (token, name, invited) values (?, ?, ?)", row
        )
        ((token,),) = self._db.execute("select token from people where name = ?", (name,))
        return str(token)

    def person(self, token: str) -> Person | None:
        found = self._db.execute(
            "select token, name, agreed, removed from people where token = ?", (token,)
        ).fetchone()
        return Person(*found) if found else None

    def people(self) -> list[Person]:
        """Everyone, in the order of invitation."""
        rows = self._db.execute(
            "select token, name, agreed, removed from people order by invited, rowid"
        )
        return [Person(*row) for row in rows]

    def agree(self, token: str) -> None:
        self._db.execute(
            "update people set agreed = coalesce(agreed, ?) where token = ?", (self.clock(), token)
        )

    def remove(self, token: str) -> None:
        """Close a link; its answers stay in the file but do not count, so items open again."""
        self._db.execute(
            "update people set removed = coalesce(removed, ?) where token = ?",
            (self.clock(), token),
        )

    def next(self, token: str) -> str | None:
        """The item to show to a person: the one they hold a seat on, else one with room, on which
        they are given a seat. None where nothing is left to them."""
        now = self.clock()
        with self._transaction():
            held = self._db.execute(
                "select item from seats where token = ? and until > ?", (token, now)
            ).fetchone()
            if held:
                return str(held[0])
            ready, early = self._open_to(token, now)
            if not (open_to := ready or early):
                return None
            votes = self._votes()
            order = random.Random(token)  # another order for everyone, the same each time
            places = {item: order.random() for item in self._items}
            item = max(open_to, key=lambda name: (votes.get(name, 0), places[name]))
            self._db.execute(
                "insert or replace into seats values (?, ?, ?, ?)",
                (item, token, now, now + self.hold),
            )
            return item

    def vote(self, token: str, item: str, choices: Mapping[str, str]) -> bool:
        """Keep an answer, once on the disk; a second one to the same item takes the place of the
        first. False where the item was not shown to them, or has all its answers by now."""
        now = self.clock()
        with self._transaction():
            mine = (item, token)
            said = json.dumps(dict(choices))
            if self._db.execute(
                "update answers set choices = ?, at = ? where item = ? and token = ?",
                (said, now, *mine),
            ).rowcount:
                return True
            seat = self._db.execute(
                "select shown, until from seats where item = ? and token = ?", mine
            ).fetchone()
            if seat is None:
                return False
            self._db.execute("delete from seats where item = ? and token = ?", mine)
            if seat[1] <= now and not self._has_room(item, now):
                return False
            row = (*mine, said, now - seat[0], now)
            self._db.execute("insert into answers values (?, ?, ?, ?, ?)", row)
            return True

    def last(self, token: str) -> tuple[str, dict[str, str]] | None:
        """The item that a person answered last, and what they chose."""
        found = self._db.execute(
            "select item, choices from answers where token = ? order by at desc, rowid desc",
            (token,),
        ).fetchone()
        return (found[0], json.loads(found[1])) if found else None

    def progress(self, token: str) -> Progress:
        now = self.clock()
        ((done,),) = self._db.execute(
            "select count(*) from answers where token = ?", (token,)
        ).fetchall()
        held = self._db.execute(
            "select count(*) from seats where token = ? and until > ?", (token, now)
        ).fetchone()[0]
        left = sum(map(len, self._open_to(token, now))) + held
        return Progress(done, left if self.each is None else max(0, min(left, self.each - done)))

    def counted(self) -> tuple[int, int]:
        """(answers that items have, that they are to have)."""
        return sum(self._votes().values()), len(self._items) * self.study.votes

    def answers(self) -> list[Answer]:
        """All that count, in the order in which they were given."""
        rows = self._db.execute(
            "select item, name, choices, seconds from answers join people using (token) "
            "where removed is null order by at, answers.rowid"
        )
        return [
            Answer(item, name, question, choice, round(seconds, 3))
            for item, name, choices, seconds in rows
            for question, choice in json.loads(choices).items()
        ]

    def close(self) -> None:
        self._db.close()

    def _refuse_others(self, path: Path) -> None:
        """Raise DataError for answers to what the study does not ask."""
        for item, choices in self._db.execute("select item, choices from answers"):
            if item not in self._items or set(json.loads(choices)) != set(self.study.questions):
                reason = (
                    f"answers to {', '.join(json.loads(choices))} on item {item}, which this study "
                    "does not ask; items and questions may be changed before the first answer only"
                )
                raise DataError([Problem(str(path), 0, reason)])

    def _votes(self) -> dict[str, int]:
        """How many answers each item has."""
        rows = self._db.execute(
            "select item, count(*) from answers join people using (token) "
            "where removed is null group by item"
        )
        return dict(rows.fetchall())

    def _taken(self, now: float) -> dict[str, int]:
        """How many answers and seats each item has."""
        taken = self._votes()
        for item, seats in self._db.execute(
            "select item, count(*) from seats join people using (token) "
            "where until > ? and removed is null group by item",
            (now,),
        ):
            taken[item] = taken.get(item, 0) + seats
        return taken

    def _has_room(self, item: str, now: float) -> bool:
        return self._taken(now).get(item, 0) < self.study.votes

    def _open_to(self, token: str, now: float) -> tuple[list[str], list[str]]:
        """The items with room that a person has neither answered nor a seat on. An item shown again
        is open to those only who answered it before; until they have seen a few others it is among
        the second ones, for when nothing else is left."""
        answered = [
            item
            for (item,) in self._db.execute(
                "select item from answers where token = ? order by at, rowid", (token,)
            )
        ]
        if self.each is not None and len(answered) >= self.each:
            return [], []
        taken, mine, lately = self._taken(now), set(answered), set(answered[-APART:])
        seats = {
            item
            for (item,) in self._db.execute(
                "select item from seats where token = ? and until > ?", (token, now)
            )
        }
        room = [
            item
            for item in self._items
            if item not in mine and item not in seats and taken.get(item, 0) < self.study.votes
        ]
        ready = [i for i in room if self._repeats[i] is None or self._repeats[i] in mine - lately]
        return ready, [item for item in room if self._repeats[item] in mine & lately]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise


def all_answers(folder: Path, study: Study) -> list[Answer]:
    """What was answered on the page and elsewhere, the last where somebody answered twice. Raises
    DataError for answers to what was not asked, or where there are none."""
    given: list[Answer] = []
    is_served = (folder / "votes.db").exists()
    if (folder / "answers.jsonl").exists() or not is_served:
        given += load_answers(folder / "answers.jsonl", study)
    if is_served:
        votes = Votes(folder, study)
        given += votes.answers()
        votes.close()
    return last_said(given)
