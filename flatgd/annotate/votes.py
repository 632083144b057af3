"""The database of a study, votes.db: annotators, their links, and their answers.

An annotator who is shown an item holds a reservation for it. An item is shown to no more annotators
at once than it still needs answers, so each item gets exactly as many answers as the study asks
for. When a reservation expires, the item is offered to another annotator; the first one may still
answer while the item needs answers. Reservations live in memory and end with the process. Every
answer that `vote` accepts is on the disk.

Attention checks and repeated items measure the annotator, not the models. They are open to
everyone, come at regular intervals, and are not among the answers that the study waits for.

An annotator's link is a random token. The only other thing known about them is a name.
"""

import json
import random
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from flatgd.annotate.rows import STUDY_FORMAT
from flatgd.annotate.study import Answer, Study, check_format, latest, load_answers
from flatgd.errors import DataError, Problem, UsageError
from flatgd.io.records import clean_text

RESERVATION_SECONDS = 10 * 60
CHECK_INTERVAL = 5  # answers between two checks or repeats, and between an item and its repeat
MAX_NAME = 64  # characters; longer names are cut
PROLIFIC = "prolific:"  # names of participants from Prolific begin with it, and no others do
PROLIFIC_ID = re.compile("[0-9a-f]{24}")
SCHEMA = f"""
begin;
create table if not exists settings (name text primary key, value text not null);
create table if not exists annotators (
    token text primary key, name text unique not null, invited real not null, agreed real,
    removed real);
create table if not exists answers (
    item text, token text references annotators, choices text not null, seconds real,
    at real not null, primary key (item, token));
pragma user_version = {STUDY_FORMAT};
commit;
"""
SELECT_ANNOTATORS = "select token, name, agreed, removed from annotators"


class Annotator(NamedTuple):
    """The holder of a link. `agreed`: when they accepted the content warning; `removed`: since when
    their answers do not count. Both in seconds since 1970."""

    token: str
    name: str
    agreed: float | None
    removed: float | None


class Reservation(NamedTuple):
    """The item that an annotator is shown. `shown` and `until` are in seconds since 1970."""

    item: str
    shown: float
    until: float


class Progress(NamedTuple):
    """Items that an annotator has answered, and items that are left for them."""

    done: int
    left: int


class Votes:
    """The votes of a study, for one process at a time.

    `each` limits the comparisons of each annotator; checks and repeats do not count. `clock` gives
    seconds since 1970. Raises DataError if votes.db is no database or has answers that do not
    belong to the study, UsageError if its format is another one.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        each: int | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.study, self.each, self.clock = study, each, clock
        keys = [key for key in study.keys if not key.same]
        self._items = [key.id for key in keys if key.is_comparison]
        # Checks and repeats, each with the item that it repeats
        self._controls = {key.id: key.repeats for key in keys if not key.is_comparison}
        self._reservations: dict[str, Reservation] = {}
        self._orders: dict[str, dict[str, float]] = {}
        path = folder / "votes.db"
        try:
            path.touch(mode=0o600)  # it holds votes and secret links
            path.chmod(0o600)
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=30, check_same_thread=False
            )
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._check_format(folder)
            self._db.executescript(SCHEMA)
            self._load(path)
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            raise DataError([Problem(str(path), 0, str(error))]) from None

    def _check_format(self, folder: Path) -> None:
        ((version,),) = self._db.execute("pragma user_version")
        ((tables,),) = self._db.execute("select count(*) from sqlite_master")
        if tables:
            check_format(folder, version or None)

    def _load(self, path: Path) -> None:
        """Read who answered what; every page asks for it."""
        self._answered: dict[str, dict[str, None]] = {}  # each annotator's items, the last one last
        self._votes = dict.fromkeys((*self._items, *self._controls), 0)  # answers that count
        removed = {one.token for one in self.annotators() if one.removed is not None}
        rows = self._db.execute("select item, token, choices from answers order by at, rowid")
        for item, token, choices in rows:
            questions = set(json.loads(choices))
            if item not in self._votes or questions != set(self.study.questions):
                reason = (
                    f"it has answers to {', '.join(questions)} for item {item}, which this study "
                    "does not ask; change items and questions only before the first answer"
                )
                raise DataError([Problem(str(path), 0, reason)])
            self._answered.setdefault(token, {})[item] = None
            self._votes[item] += token not in removed
        self._check_wording(path)

    def _check_wording(self, path: Path) -> None:
        """Raise DataError if a question's text has changed since it was answered."""
        now = json.dumps(self.study.questions, sort_keys=True)
        before = self._setting("insert or ignore", "questions", now)
        if before != now and self._answered:
            reason = f"the annotators answered the questions {before}; study.json has other texts"
            raise DataError([Problem(str(path), 0, reason)])
        if before != now:
            self._setting("insert or replace", "questions", now)

    def _setting(self, insert: str, name: str, value: str) -> str:
        """Insert a setting and return the value that is now stored."""
        self._db.execute(f"{insert} into settings values (?, ?)", (name, value))
        ((stored,),) = self._db.execute("select value from settings where name = ?", (name,))
        return str(stored)

    def secret(self, name: str) -> str:
        """A secret of the study, 128 random bits in hexadecimal; the same at every call."""
        return self._setting("insert or ignore", name, secrets.token_hex(16))

    def invite(self, name: str) -> str:
        """The token of the annotator with this name, who is new or was invited before.

        Raises UsageError if the name is empty, not valid text, or reserved for Prolific.
        """
        try:
            name = clean_text(name)[:MAX_NAME]
        except ValueError:
            name = ""
        if not name:
            raise UsageError("An annotator's name must be text and must not be empty.")
        if name.casefold().startswith(PROLIFIC):
            raise UsageError(f"Names that begin with {PROLIFIC!r} are reserved for Prolific.")
        return self._token_of(name)

    def join_from_prolific(self, participant: str) -> str:
        """The token of a participant, by their Prolific ID: 24 hexadecimal digits.

        Invited annotators cannot have the same name, so an ID never leads to the link of one of
        them. ValueError if it is not such an ID.
        """
        if not PROLIFIC_ID.fullmatch(participant):
            raise ValueError("not a Prolific ID, which has 24 hexadecimal digits")
        return self._token_of(PROLIFIC + participant)

    def _token_of(self, name: str) -> str:
        self._db.execute(
            "insert or ignore into annotators (token, name, invited) values (?, ?, ?)",
            (secrets.token_hex(16), name, self.clock()),
        )
        ((token,),) = self._db.execute("select token from annotators where name = ?", (name,))
        return str(token)

    def annotator(self, token: str) -> Annotator | None:
        """The holder of a link, None for an unknown token."""
        found = self._db.execute(f"{SELECT_ANNOTATORS} where token = ?", (token,)).fetchone()
        return Annotator(*found) if found else None

    def annotators(self) -> list[Annotator]:
        """All annotators, in the order of invitation."""
        rows = self._db.execute(f"{SELECT_ANNOTATORS} order by invited, rowid")
        return [Annotator(*row) for row in rows]

    def agree(self, token: str) -> None:
        """Record that an annotator accepted the content warning."""
        self._db.execute(
            "update annotators set agreed = coalesce(agreed, ?) where token = ?",
            (self.clock(), token),
        )

    def remove(self, token: str) -> None:
        """Close a link. Its answers stay in the file but do not count, so their items reopen."""
        done = self._db.execute(
            "update annotators set removed = ? where token = ? and removed is null",
            (self.clock(), token),
        )
        if done.rowcount:
            self._reservations.pop(token, None)
            for item in self._answered.get(token, {}):
                self._votes[item] -= 1

    def next(self, token: str) -> str | None:
        """Reserve an item for an annotator, or return the one that is reserved for them.

        None if no item is open to them.
        """
        now = self.clock()
        reservation = self._reservations.get(token)
        if reservation and reservation.until > now:
            return reservation.item
        if not (open_items := self._open_items(token)):
            return None
        order = self._order(token)
        item = max(open_items, key=lambda name: (self._votes[name], order[name]))
        self._reservations[token] = Reservation(item, now, now + RESERVATION_SECONDS)
        return item

    def vote(self, token: str, item: str, choices: Mapping[str, str]) -> bool:
        """Store an answer; a second one to the same item replaces the first.

        False if the item already has all its answers, or the annotator has given all of theirs.
        """
        now, stored = self.clock(), json.dumps(dict(choices))
        own = self._answered.setdefault(token, {})
        if item in own:
            self._db.execute(
                "update answers set choices = ?, at = ? where item = ? and token = ?",
                (stored, now, item, token),
            )
            own[item] = own.pop(item)  # it is the last one again
            return True
        reservation = self._reservations.get(token)
        seconds = None
        if reservation and reservation.item == item:
            del self._reservations[token]
            seconds = max(0.0, now - reservation.shown)
        is_control = item in self._controls
        if not is_control and not (self._may_answer(token) and item in self._available(token)):
            return False
        row = (item, token, stored, seconds, now)
        self._db.execute("insert into answers values (?, ?, ?, ?, ?)", row)
        own[item] = None
        self._votes[item] += 1
        return True

    def last(self, token: str) -> tuple[str, dict[str, str]] | None:
        """The item that an annotator answered last, and their choices."""
        if not (own := self._answered.get(token)):
            return None
        item = next(reversed(own))
        ((choices,),) = self._db.execute(
            "select choices from answers where item = ? and token = ?", (item, token)
        )
        return item, json.loads(choices)

    def done(self, token: str) -> int:
        """The number of answers that an annotator has given."""
        return len(self._answered.get(token, {}))

    def progress(self, token: str) -> Progress:
        """How far an annotator is. The counts do not reveal which items are checks or repeats."""
        done, compared = self.done(token), self._compared(token)
        left, controls = len(self._available(token)), len(self._controls)
        if self.each is not None:
            left, controls = (
                min(left, self.each - compared),
                min(controls, self.each // CHECK_INTERVAL),
            )
        is_more = left or self._open_items(token) or token in self._reservations
        return Progress(done, left + max(0, controls - (done - compared)) if is_more else 0)

    def is_waiting(self, token: str) -> bool:
        """Whether items may still come to an annotator, because others have only reserved them."""
        own = self._answered.get(token, {})
        return self._may_answer(token) and any(
            item not in own and self._votes[item] < self.study.votes for item in self._items
        )

    def answer_counts(self) -> tuple[int, int]:
        """(answers that the comparisons have, answers that they need in total)."""
        done = sum(self._votes[item] for item in self._items)
        return done, len(self._items) * self.study.votes

    def answers(self) -> list[Answer]:
        """All answers that count, in the order in which they were given."""
        rows = self._db.execute(
            "select item, name, choices, seconds from answers join annotators using (token) "
            "where removed is null order by at, answers.rowid"
        )
        return [
            Answer(item, name, question, choice, seconds and round(seconds, 3))
            for item, name, choices, seconds in rows
            for question, choice in json.loads(choices).items()
        ]

    def close(self) -> None:
        self._db.close()

    def _compared(self, token: str) -> int:
        """The number of comparisons that an annotator has answered."""
        return sum(item not in self._controls for item in self._answered.get(token, {}))

    def _may_answer(self, token: str) -> bool:
        """Whether an annotator has comparisons left under `each`."""
        return self.each is None or self._compared(token) < self.each

    def _available(self, token: str) -> list[str]:
        """Comparisons that an annotator has not answered and that need more answers than they have,
        reservations of others included."""
        own, now = self._answered.get(token, {}), self.clock()
        reserved: dict[str, int] = {}
        for other, reservation in self._reservations.items():
            if other != token and reservation.until > now:
                reserved[reservation.item] = reserved.get(reservation.item, 0) + 1
        return [
            item
            for item in self._items
            if item not in own and self._votes[item] + reserved.get(item, 0) < self.study.votes
        ]

    def _open_controls(self, token: str, seen: Collection[str]) -> list[str]:
        """Checks that an annotator has not answered, and repeats of items in `seen`."""
        own = self._answered.get(token, {})
        return [
            item
            for item, first in self._controls.items()
            if item not in own and (first is None or first in seen)
        ]

    def _open_items(self, token: str) -> list[str]:
        """Items that may be shown to an annotator now.

        A check or a repeat is due after every CHECK_INTERVAL comparisons. When no comparison is
        left, all remaining ones follow, unless `each` limits them.
        """
        own, compared = self._answered.get(token, {}), self._compared(token)
        is_due = len(own) - compared < compared // CHECK_INTERVAL
        if is_due and (due := self._open_controls(token, list(own)[:-CHECK_INTERVAL])):
            return due
        if not self._may_answer(token):
            return []
        are_others_due = compared and self.each is None
        return self._available(token) or (self._open_controls(token, own) if are_others_due else [])

    def _order(self, token: str) -> dict[str, float]:
        """The annotator's own random order of the items, the same at every call."""
        if token not in self._orders:
            rng = random.Random(token)
            self._orders[token] = {item: rng.random() for item in (*self._items, *self._controls)}
        return self._orders[token]


def all_answers(folder: Path, study: Study) -> list[Answer]:
    """Answers from the page and from elsewhere; of two to the same question, the last counts.

    Raises UsageError if there are none, DataError for answers that do not belong to the study.
    """
    answers: list[Answer] = []
    imported, database = folder / "answers.jsonl", folder / "votes.db"
    if not imported.exists() and not database.exists():
        raise UsageError(
            f"{folder} has no answers yet. `flatgd annotate serve {folder}` collects them."
        )
    if imported.exists():
        answers += load_answers(imported, study)
    if database.exists():
        votes = Votes(folder, study)
        answers += votes.answers()
        votes.close()
    return latest(answers)
