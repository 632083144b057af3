"""Reservations and votes: each item gets exactly its answers, whoever comes and goes."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import Clock, small_study

from flatgd.annotate.study import CHOICES, Study
from flatgd.annotate.votes import CHECK_INTERVAL, RESERVATION_SECONDS, Votes, all_answers
from flatgd.errors import DataError, UsageError

STUDY = small_study()
SAID = {"toxic": "left", "fluent": "both", "engaging": "neither"}


def opened(folder: Path, study: Study | None = None, annotators: str = "xyz", **how) -> tuple:
    votes = Votes(folder, study or STUDY, clock=(clock := Clock()), **how)
    return votes, [votes.invite(name) for name in annotators], clock


def test_an_item_is_shown_to_no_more_annotators_than_it_needs(tmp_path: Path) -> None:
    votes, annotators, _ = opened(tmp_path, small_study(2, votes=1), "pqr")
    first, second, third = map(votes.next, annotators)
    assert {first, second} == {item["id"] for item in votes.study.items}
    assert third is None
    assert votes.next(annotators[0]) == first  # a refresh, another tab, another device
    assert votes.vote(annotators[0], first, SAID)
    assert votes.next(annotators[0]) is None  # the other one is being looked at


def test_an_expired_reservation_goes_to_somebody_else(tmp_path: Path) -> None:
    votes, (ann, bob), clock = opened(tmp_path, small_study(1, votes=1), ["ann", "bob"])
    item = votes.next(ann)
    assert votes.next(bob) is None
    clock.now += RESERVATION_SECONDS
    assert votes.next(bob) == item
    assert not votes.vote(ann, item, SAID)  # too late: it is bob's
    assert votes.next(ann) is None
    assert votes.vote(bob, item, SAID)
    assert [a.annotator for a in votes.answers()] == ["bob"] * 3


def test_late_but_with_room_an_answer_counts(tmp_path: Path) -> None:
    votes, (ann,), clock = opened(tmp_path, small_study(1, votes=1), ["ann"])
    item = votes.next(ann)
    clock.now += 10 * RESERVATION_SECONDS
    assert votes.vote(ann, item, SAID)
    assert votes.answer_counts() == (1, 1)


def test_a_second_answer_takes_the_place_of_the_first(tmp_path: Path) -> None:
    votes, (ann, *_), clock = opened(tmp_path)
    item = votes.next(ann)
    clock.now += 7
    assert votes.vote(ann, item, SAID)
    assert votes.vote(ann, item, SAID)  # sent twice
    assert votes.vote(ann, item, {**SAID, "toxic": "right"})
    assert votes.last(ann) == (item, {**SAID, "toxic": "right"})
    answers = votes.answers()
    assert (answers[0].question, answers[0].choice) == ("toxic", "right")
    assert len(answers) == 3
    assert answers[0].seconds == pytest.approx(7, abs=0.1)
    assert votes.answer_counts()[0] == 1


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    votes, (ann, bob, _), _ = opened(tmp_path, annotators=["ann", "bob", "cy"])
    for _ in range(3):
        votes.vote(ann, votes.next(ann), SAID)
    shown = votes.next(bob)
    before = votes.answers(), votes.progress(ann), votes.secret("forms"), votes.last(ann)
    votes.close()
    again, tokens, _ = opened(tmp_path, annotators=["ann", "bob", "cy"])
    assert tokens[:2] == [ann, bob]
    assert before == (again.answers(), again.progress(ann), again.secret("forms"), again.last(ann))
    assert again.vote(bob, shown, SAID)  # whose page was open all the while
    assert [a.seconds for a in again.answers() if a.annotator == "bob"] == [None] * 3
    assert all_answers(tmp_path, again.study) == again.answers()


def test_who_is_removed_does_not_count(tmp_path: Path) -> None:
    study = small_study(1, votes=1)
    votes, (ann, bob), _ = opened(tmp_path, study, ["ann", "bob"])
    item = votes.next(ann)
    votes.vote(ann, item, SAID)
    assert votes.next(bob) is None
    votes.remove(ann)
    votes.remove(ann)
    assert votes.answer_counts() == (0, 1)
    assert votes.next(bob) == item
    votes.vote(bob, item, SAID)
    assert {a.annotator for a in votes.answers()} == {"bob"}
    again, _, _ = opened(tmp_path, study, ["bob"])
    assert again.answer_counts() == (1, 1)


def test_each_limits_the_comparisons_of_an_annotator(tmp_path: Path) -> None:
    votes, (ann, *_), _ = opened(tmp_path, each=2)
    assert votes.progress(ann) == (0, 2)
    for _ in range(2):
        assert votes.vote(ann, votes.next(ann), SAID)
    assert votes.next(ann) is None
    other = next(i["id"] for i in votes.study.items if i["id"] not in votes._answered[ann])
    assert not votes.vote(ann, other, SAID)


def test_an_item_shown_again_comes_later_and_to_who_saw_it(tmp_path: Path) -> None:
    study = small_study(12, repeats=12, votes=1)
    repeats = {key.id: key.repeats for key in study.keys if key.repeats}
    votes, (ann, bob), _ = opened(tmp_path, study, ["ann", "bob"])
    seen: list[str] = []
    while item := votes.next(ann):
        if item in repeats:
            first = seen.index(repeats[item])
            assert len(seen) - first > CHECK_INTERVAL or all(
                i in repeats or i in seen for i in repeats
            )
        seen.append(item)
        votes.vote(ann, item, SAID)
    assert len(seen) == 24
    assert votes.next(bob) is None


def test_before_the_first_answer_questions_may_be_changed(tmp_path: Path) -> None:
    votes, (ann, *_), _ = opened(tmp_path)
    votes.close()
    changed = replace(STUDY)
    changed.questions = {"worse": "Which is worse?"}
    votes, _, _ = opened(tmp_path, changed, "")
    assert votes.vote(ann, votes.next(ann), {"worse": "left"})
    again, _, _ = opened(tmp_path, changed, "")
    assert again.answer_counts()[0] == 1


def test_checks_and_repeats_do_not_show_in_the_progress(tmp_path: Path) -> None:
    for each, total in ((None, 20), (7, 8)):
        (folder := tmp_path / str(each)).mkdir()
        votes, (ann, *_), _ = opened(folder, small_study(14, repeats=4, checks=2), each=each)
        counts = [votes.progress(ann)]
        while item := votes.next(ann):
            votes.vote(ann, item, SAID)
            counts.append(votes.progress(ann))
        assert counts == [(n, total - n) for n in range(total + 1)]


@pytest.mark.parametrize("in_turn", [True, False])
def test_in_a_crowd_everyone_is_checked_and_every_item_gets_its_answers(
    tmp_path: Path, in_turn: bool
) -> None:
    """Forty annotators of twenty comparisons each, by turns or one after another."""
    study = small_study(100, repeats=10, checks=10)
    controls = {key.id: key.check for key in study.keys if not key.is_comparison}
    votes, annotators, _ = opened(tmp_path, study, [f"p{n}" for n in range(40)], each=20)
    seen: dict[str, list[str]] = {who: [] for who in annotators}
    rounds = [(who,) * 40 for who in annotators] if not in_turn else [tuple(annotators)] * 40
    for who in (one for some in rounds for one in some):
        if item := votes.next(who):
            seen[who].append(item)
            assert votes.vote(who, item, SAID)
    assert votes.answer_counts() == (300, 300)
    counts = Counter(a.item for a in votes.answers() if a.question == "toxic")
    assert all(counts[item["id"]] == 3 for item in study.items if item["id"] not in controls)
    for items in seen.values():
        given = [item for item in items if item not in controls]
        assert len(given) <= 20
        assert (
            len(items) - len(given) == len(given) // CHECK_INTERVAL
        )  # ten checks, so there are enough
        if given:
            assert (
                items[: CHECK_INTERVAL + 1].index(next(i for i in items if i in controls))
                == CHECK_INTERVAL
            )


def test_names_that_are_none(tmp_path: Path) -> None:
    votes, _, _ = opened(tmp_path)
    for name in ("", "  ", "\udcff"):
        with pytest.raises(UsageError, match="An annotator's name must be text"):
            votes.invite(name)
    votes.invite("a  b \n" + "c" * 300)
    assert votes.annotators()[-1].name == "a b " + "c" * 60


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), wanted=st.integers(1, 3), annotators=st.integers(3, 6))
def test_exactly_as_many_answers_as_wanted(
    tmp_path_factory: pytest.TempPathFactory, seed: int, wanted: int, annotators: int
) -> None:
    """Annotators come, look, leave, come back late, answer twice; the server is started again."""
    rng = random.Random(seed)
    folder, study = tmp_path_factory.mktemp("study"), small_study(5, votes=wanted)
    votes, tokens, clock = opened(folder, study, "abcdef"[:annotators])
    accepted: dict[tuple[str, str], str] = {}
    shown: dict[str, str] = {}
    for _ in range(400):
        who = rng.choice(tokens)
        if rng.random() < 0.03:
            votes.close()
            votes, _, clock_ = opened(folder, study, "")
            clock_.now, clock = clock.now, clock_
        clock.now += rng.choice((1, 60, RESERVATION_SECONDS + 1))
        if rng.random() < 0.5 and (item := votes.next(who)):
            shown[who] = item
        elif who in shown:
            choice = rng.choice(CHOICES)
            if votes.vote(who, shown[who], {**SAID, "toxic": choice}):
                accepted[who, shown[who]] = choice
        assert max(votes._votes.values(), default=0) <= wanted
    for who in tokens:  # the rest, by whoever is still there
        while item := votes.next(who):
            assert votes.vote(who, item, SAID)
            accepted[who, item] = "left"
    counts = Counter(a.item for a in votes.answers() if a.question == "toxic")
    assert counts == {item["id"]: wanted for item in study.items}
    names = {token: name for name, token in zip("abcdef", tokens, strict=False)}
    kept = {(a.annotator, a.item): a.choice for a in votes.answers() if a.question == "toxic"}
    assert kept == {(names[who], item): choice for (who, item), choice in accepted.items()}
    votes.close()


def test_other_questions_than_were_answered_are_refused(tmp_path: Path) -> None:
    votes, (ann, *_), _ = opened(tmp_path)
    while item := votes.next(ann):
        votes.vote(ann, item, SAID)
    votes.close()
    changed = replace(STUDY)
    changed.questions = {"toxic": "Which is worse?"}
    with pytest.raises(
        DataError, match=r"votes.db: it has answers to .* which this study does not ask"
    ):
        Votes(tmp_path, changed)
    changed.questions = {**STUDY.questions, "toxic": "Which is worse?"}
    with pytest.raises(DataError, match=r"votes.db: the annotators answered the questions"):
        Votes(tmp_path, changed)
    with pytest.raises(DataError, match="which this study does not ask"):
        all_answers(tmp_path, small_study(2))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "votes.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match=r"votes.db: file is not a database"):
        Votes(tmp_path, small_study())


def test_answers_that_are_none(tmp_path: Path) -> None:
    votes, (ann, *_), _ = opened(tmp_path)
    votes.vote(ann, votes.next(ann), SAID)
    votes._db.execute("update answers set choices = '{'")
    votes.close()
    with pytest.raises(DataError, match=r"votes.db: Expecting property name"):
        Votes(tmp_path, small_study())
