"""Who was invited to a study, who is looking at which item, and what was answered: votes.db.

Whoever is shown an item holds a seat on it for a while, and an item is shown to no more people than
it still wants answers, so that each gets exactly as many as it is to have, however people come and
go. A seat that has run out is given to somebody else; whoever held it may still answer as long as
there is room. Seats are forgotten when the process ends; what `vote` has returned True for is on
the disk.

Items that ask for a choice, or are shown again, are about the person and not the models: they are
open to everyone, one after each few others, and are not among the answers that a study waits for.

A link is a token that cannot be guessed; all that is known of a person is a name.
"""

import json
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from flatgd.annotate.study import Answer, Study, last_said, load_answers
from flatgd.errors import DataError, Problem, RecipeError
from flatgd.io.records import clean_text

HOLD = 10 * 60  # seconds that a seat is held
APART = 5  # answers between an item and its being shown again, and between such items
LONGEST_NAME = 64
SCHEMA = """
create table if not exists about (name text primary key, value text not null);
create table if not exists people (
    token text primary key, name text unique not null, invited real not null, agreed real,
    removed real);
create table if not exists answers (
    item text, token text references people, choices text not null, seconds real, at real not null,
    primary key (item, token));
"""
PEOPLE = "select token, name, agreed, removed from people"


class Person(NamedTuple):
    """Who holds a link. `agreed`: to go on after the warning; `removed`: their answers do not
    count; seconds since 1970."""

    token: str
    name: str
    agreed: float | None
    removed: float | None


class Seat(NamedTuple):
    """The item that a person is shown, since when, and until when it is kept for them."""

    item: str
    shown: float
    until: float


class Progress(NamedTuple):
    """Items that a person has answered, and that are left to them."""

    done: int
    left: int


class Votes:
    """The votes of a study, of one process at a time. `each`: items a person, those about the
    person not counted, None for all there are. `clock` gives seconds since 1970. Raises DataError
    for a file that is none, or holds answers to what the study does not ask."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        each: int | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.study, self.each, self.clock = study, each, clock
        keys = [key for key in study.keys if not key.same]
        self._items = [key.id for key in keys if key.counts]
        self._extras = {key.id: key.repeats for key in keys if not key.counts}
        self._seats: dict[str, Seat] = {}
        self._orders: dict[str, dict[str, float]] = {}
        try:
            (folder / "votes.db").touch(mode=0o600)  # its links are secrets
            self._db = sqlite3.connect(
                folder / "votes.db", isolation_level=None, timeout=30, check_same_thread=False
            )
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(SCHEMA)
            self._load(folder / "votes.db")
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            raise DataError([Problem(str(folder / "votes.db"), 0, str(error))]) from None

    def _load(self, path: Path) -> None:
        """Who answered what, in memory too: it is asked for with every page."""
        self._answered: dict[str, dict[str, None]] = {}  # a person's items, the last one last
        self._votes = dict.fromkeys((*self._items, *self._extras), 0)  # that count
        removed = {person.token for person in self.people() if person.removed is not None}
        rows = self._db.execute("select item, token, choices from answers order by at, rowid")
        for item, token, choices in rows:
            asked = set(json.loads(choices))
            if item not in self._votes or asked != set(self.study.questions):
                reason = (
                    f"answers to {', '.join(asked)} on item {item}, which this study does not ask; "
                    "items and questions may be changed before the first answer only"
                )
                raise DataError([Problem(str(path), 0, reason)])
            self._answered.setdefault(token, {})[item] = None
            self._votes[item] += token not in removed
        self._hold_to_the_wording(path)

    def _hold_to_the_wording(self, path: Path) -> None:
        """Raise DataError where questions were put otherwise to those who answered them."""
        asked = json.dumps(self.study.questions, sort_keys=True)
        kept = self._about("insert or ignore", "questions", asked)
        if kept != asked and self._answered:
            reason = f"the questions that were answered are {kept}; study.json puts them otherwise"
            raise DataError([Problem(str(path), 0, reason)])
        if kept != asked:
            self._about("insert or replace", "questions", asked)

    def _about(self, how: str, name: str, value: str) -> str:
        """What is kept under a name, after `value` was put there."""
        self._db.execute(f"{how} into about values (?, ?)", (name, value))
        ((kept,),) = self._db.execute("select value from about where name = ?", (name,))
        return str(kept)

    def secret(self, name: str) -> str:
        """One of the study's secrets, made when it is first asked for."""
        return self._about("insert or ignore", name, secrets.token_hex(16))

    def invite(self, name: str) -> str:
        """The token of a person of this name, who is new or was invited before. Raises RecipeError
        for a name that is none."""
        try:
            name = clean_text(name)[:LONGEST_NAME]
        except ValueError:
            name = ""
        if not name:
            raise RecipeError("a person's name must be text, and not empty")
        row = (secrets.token_hex(16), name, self.clock())
        self._db.execute(
            "insert or ignore into people (token, name, invited) values (?, ?, ?)", row
        )
        ((token,),) = self._db.execute("select token from people where name = ?", (name,))
        return str(token)

    def person(self, token: str) -> Person | None:
        found = self._db.execute(f"{PEOPLE} where token = ?", (token,)).fetchone()
        return Person(*found) if found else None

    def people(self) -> list[Person]:
        """Everyone, in the order of invitation."""
        return [Person(*row) for row in self._db.execute(f"{PEOPLE} order by invited, rowid")]

    def agree(self, token: str) -> None:
        self._db.execute(
            "update people set agreed = coalesce(agreed, ?) where token = ?", (self.clock(), token)
        )

    def remove(self, token: str) -> None:
        """Close a link; its answers stay in the file but do not count, so items open again."""
        done = self._db.execute(
            "update people set removed = ? where token = ? and removed is null",
            (self.clock(), token),
        )
        if done.rowcount:
            self._seats.pop(token, None)
            for item in self._answered.get(token, {}):
                self._votes[item] -= 1

    def next(self, token: str) -> str | None:
        """The item to show to a person: the one they hold a seat on, else one with room, on which
        they are given a seat. None where nothing is left to them."""
        now = self.clock()
        seat = self._seats.get(token)
        if seat and seat.until > now:
            return seat.item
        if not (open_to := self._open_to(token)):
            return None
        order = self._order(token)
        item = max(open_to, key=lambda name: (self._votes[name], order[name]))
        self._seats[token] = Seat(item, now, now + HOLD)
        return item

    def vote(self, token: str, item: str, choices: Mapping[str, str]) -> bool:
        """Keep an answer; a second one to the same item takes the place of the first. False where
        the item has all its answers by now, or the person has given all of theirs."""
        now, said = self.clock(), json.dumps(dict(choices))
        mine = self._answered.setdefault(token, {})
        if item in mine:
            self._db.execute(
                "update answers set choices = ?, at = ? where item = ? and token = ?",
                (said, now, item, token),
            )
            mine[item] = mine.pop(item)  # last again
            return True
        seat = self._seats.get(token)
        seconds = None
        if seat and seat.item == item:
            del self._seats[token]
            seconds = max(0.0, now - seat.shown)
        is_item = item not in self._extras
        if is_item and not (self._wants(token) and item in self._room(token)):
            return False
        row = (item, token, said, seconds, now)
        self._db.execute("insert into answers values (?, ?, ?, ?, ?)", row)
        mine[item] = None
        self._votes[item] += 1
        return True

    def last(self, token: str) -> tuple[str, dict[str, str]] | None:
        """The item that a person answered last, and what they chose."""
        if not (mine := self._answered.get(token)):
            return None
        item = next(reversed(mine))
        ((said,),) = self._db.execute(
            "select choices from answers where item = ? and token = ?", (item, token)
        )
        return item, json.loads(said)

    def done(self, token: str) -> int:
        """How many answers a person has given."""
        return len(self._answered.get(token, {}))

    def progress(self, token: str) -> Progress:
        """About the person or not is not to be seen in it."""
        done, given, left = self.done(token), self._given(token), len(self._room(token))
        extras = len(self._extras)
        if self.each is not None:
            left, extras = min(left, self.each - given), min(extras, self.each // APART)
        is_more = left or self._open_to(token) or token in self._seats
        return Progress(done, left + max(0, extras - (done - given)) if is_more else 0)

    def is_waiting(self, token: str) -> bool:
        """Whether items that a person might answer are only held by others, who may not."""
        mine = self._answered.get(token, {})
        return self._wants(token) and any(
            item not in mine and self._votes[item] < self.study.votes for item in self._items
        )

    def counted(self) -> tuple[int, int]:
        """(answers that items have, that they are to have)."""
        done = sum(self._votes[item] for item in self._items)
        return done, len(self._items) * self.study.votes

    def answers(self) -> list[Answer]:
        """All that count, in the order in which they were given."""
        rows = self._db.execute(
            "select item, name, choices, seconds from answers join people using (token) "
            "where removed is null order by at, answers.rowid"
        )
        return [
            Answer(item, name, question, choice, seconds and round(seconds, 3))
            for item, name, choices, seconds in rows
            for question, choice in json.loads(choices).items()
        ]

    def close(self) -> None:
        self._db.close()

    def _given(self, token: str) -> int:
        """How many items a person has answered."""
        return sum(item not in self._extras for item in self._answered.get(token, {}))

    def _wants(self, token: str) -> bool:
        """Whether a person is to answer more."""
        return self.each is None or self._given(token) < self.each

    def _room(self, token: str) -> list[str]:
        """The items that a person has not answered and that want more answers than they have, and
        than others hold seats on them."""
        mine, now = self._answered.get(token, {}), self.clock()
        held: dict[str, int] = {}
        for who, seat in self._seats.items():
            if who != token and seat.until > now:
                held[seat.item] = held.get(seat.item, 0) + 1
        return [
            item
            for item in self._items
            if item not in mine and self._votes[item] + held.get(item, 0) < self.study.votes
        ]

    def _of_them(self, token: str, seen: Collection[str]) -> list[str]:
        """The items about the person that they have not answered, those shown again if the first
        time is among `seen`."""
        mine = self._answered.get(token, {})
        return [
            item
            for item, first in self._extras.items()
            if item not in mine and (first is None or first in seen)
        ]

    def _open_to(self, token: str) -> list[str]:
        """What may be shown to a person now: after each few items one about them, if its first time
        is a while ago; when no item is left, all the rest of those, unless `each` limits them."""
        mine, given = self._answered.get(token, {}), self._given(token)
        is_due = len(mine) - given < given // APART
        if is_due and (due := self._of_them(token, list(mine)[:-APART])):
            return due
        if not self._wants(token):
            return []
        is_rest_due = given and self.each is None
        return self._room(token) or (self._of_them(token, mine) if is_rest_due else [])

    def _order(self, token: str) -> dict[str, float]:
        """Another order of the items for everyone, the same each time."""
        if token not in self._orders:
            rng = random.Random(token)
            self._orders[token] = {item: rng.random() for item in (*self._items, *self._extras)}
        return self._orders[token]


def all_answers(folder: Path, study: Study) -> list[Answer]:
    """What was answered on the page and elsewhere, the last where somebody answered twice. Raises
    RecipeError where there is nothing, DataError for answers to what was not asked."""
    given: list[Answer] = []
    elsewhere, served = folder / "answers.jsonl", folder / "votes.db"
    if not elsewhere.exists() and not served.exists():
        raise RecipeError(f"no answers yet in {folder}; `flatgd annotate serve {folder}` asks")
    if elsewhere.exists():
        given += load_answers(elsewhere, study)
    if served.exists():
        votes = Votes(folder, study)
        given += votes.answers()
        votes.close()
    return last_said(given)
