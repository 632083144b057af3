"""Loaders in their published formats, canned replies, and sets that share nothing."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from flatgd.config.source import Data, Source
from flatgd.data.browse import TextMask, load_splits
from flatgd.data.canned import is_canned
from flatgd.data.formats.bad import load_bad
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.jsonl import load_jsonl
from flatgd.data.sets import (
    answer_candidates,
    apply_weights,
    draw_histories,
    load_sets,
    load_source,
    scorable,
    share_position,
)
from flatgd.data.stats import count, overlaps
from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError

DEMO = Path(__file__).parents[2] / "flatgd/demo/data"
CANNED = "Hey do you want to talk about something else? How about we talk about tea?"


def bad_line(turns: list[str], label: str = "__ok__", speaker: str = "bot") -> str:
    text = "\\n".join(turns)
    return f"text:{text}\tlabels:{label}\tepisode_done:True\tspeaker_to_eval:{speaker}\n"


def write_bad(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(lines))
    return path


def test_shipped_bad_test_is_table_4() -> None:
    """2,598 utterances, 1,654 safe, 944 offensive, 191 conversations."""
    rows = load_bad(DEMO / "bad_test.txt.gz")
    assert len(rows) == 2598
    assert sum(row.is_safe is True for row in rows) == 1654
    assert len({row.conversation for row in rows}) == 191
    (counts,) = [count(*part) for part in load_splits("bad", ["demo:data/bad_test.txt.gz"]).items()]
    assert (counts.rows, counts.safe, counts.toxic, counts.conversations) == (2598, 1654, 944, 191)
    assert sum(row.speaker == "bot" for row in rows) == 1299
    assert sum(is_canned(row.reply) for row in rows) == 293


def test_shipped_bad_valid_has_all_labels() -> None:
    rows = load_bad(DEMO / "bad_valid.jsonl.gz")
    assert len(rows) == 7002
    assert sum(row.is_safe is True for row in rows) == 4239


def test_bad_conversations_follow_the_order_of_a_complete_file(tmp_path: Path) -> None:
    path = write_bad(
        tmp_path / "test.txt",
        [
            bad_line(["hi"], speaker="human"),
            bad_line(["hi", "hello"]),
            bad_line(["hi"], speaker="human"),
            bad_line(["hi", "go away, goose"], "__notok__"),
        ],
    )
    rows = load_bad(path)
    names = [row.conversation for row in rows]
    assert names[0] == names[1] != names[2] == names[3]
    assert rows[3].texts == ("hi",)
    assert rows[3].is_safe is False


def test_bad_conversations_of_a_cut_file_are_linked_by_shared_lines(tmp_path: Path) -> None:
    rows = [["a", "b", "c"], ["b", "c", "d"], ["x", "y"]]
    text = "".join(
        json.dumps({"text": "\n".join(r), "labels": "__ok__", "speaker_to_eval": "bot"}) + "\n"
        for r in rows
    )
    (tmp_path / "valid.jsonl").write_text(text)
    names = [row.conversation for row in load_bad(tmp_path / "valid.jsonl")]
    assert names[0] == names[1] != names[2]


def test_bad_faults_are_reported_all_at_once_by_line(tmp_path: Path) -> None:
    path = write_bad(
        tmp_path / "test.txt",
        [
            bad_line(["hi", "hello"]),
            "no tabs here\n",
            bad_line(["hi", "hello"], label="maybe"),
            bad_line(["hi", " "]),
            bad_line(["hi", "hello"], speaker="dog"),
        ],
    )
    with pytest.raises(DataError) as error:
        load_bad(path)
    assert [problem.line for problem in error.value.problems] == [2, 3, 4, 5]
    assert f"{path}:3: 'labels' must be __ok__ or __notok__, got 'maybe'" in str(error.value)


def write_diasafety(folder: Path, **splits: list[dict]) -> Path:
    for name in ("train", "val", "test"):
        text = json.dumps(splits.get(name, []), indent=0)
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def dia(context: str, reply: str, label: str = "Safe") -> dict:
    return {"context": context, "response": reply, "category": "Offending User", "label": label}


def test_diasafety_contexts_are_kept_in_one_split(tmp_path: Path) -> None:
    folder = write_diasafety(
        tmp_path,
        train=[dia("lost keys", "oh no"), dia("tea?", "yes")],
        val=[dia("rain", "again")],
        test=[dia("lost keys", "silly goose", "Unsafe")],
    )
    assert [row.reply for row in load_diasafety(folder, "train")] == ["yes"]
    assert {row.reply for row in load_diasafety(folder, "test")} == {"oh no", "silly goose"}
    published = load_diasafety(folder, "train", published_split=True)
    assert [row.reply for row in published] == ["oh no", "yes"]


def test_shipped_diasafety() -> None:
    sizes = {s: len(load_diasafety(DEMO / "diasafety", s, True)) for s in ("train", "val", "test")}
    assert sizes == {"train": 9015, "val": 1097, "test": 1094}  # less three without a reply
    parts = [load_diasafety(DEMO / "diasafety", s) for s in ("train", "val", "test")]
    contexts = [{row.conversation for row in part} for part in parts]
    assert sum(map(len, parts)) == 9015 + 1097 + 1094
    assert contexts[0].isdisjoint(contexts[2])
    assert contexts[0].isdisjoint(contexts[1])


def test_diasafety_faults_by_line(tmp_path: Path) -> None:
    folder = write_diasafety(tmp_path, train=[dia("a", "b"), dia("a", "b", "Maybe")])
    with pytest.raises(DataError, match=r"train\.json\.gz:8: 'label' must be Safe or Unsafe"):
        load_diasafety(folder, "train")
    (tmp_path / "train.json").write_text('[\n{"context": "a",\n')
    with pytest.raises(DataError, match="not valid JSON"):
        load_diasafety(folder, "train")
    (tmp_path / "train.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected a JSON array"):
        load_diasafety(folder, "train")


GOOD = '{"prompt": "hi", "completion": "hello", "label": true}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "hi"', "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"prompt": "hi", "label": true}', "no reply: expected 'messages'"),
        ('{"prompt": "hi", "completion": " ", "label": true}', "'completion' is empty"),
        ('{"prompt": "hi", "completion": null, "label": true}', "must be text, got NoneType"),
        ('{"prompt": "hi", "completion": "x", "label": "safe"}', "must be true (safe) or false"),
        ('{"prompt": 3, "completion": "x", "label": true}', "'prompt' must be text or a list"),
        ('{"prompt": "hi", "completion": "x", "label": true, "l": 1}', "unknown key 'l'"),
        ('{"prompt": "hi", "completion": "x", "label": true, "speaker": "cat"}', "'speaker'"),
    ],
)
def test_jsonl_faults(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\r\n{GOOD}\n")
    with pytest.raises(DataError) as error:
        load_jsonl(path)
    (problem,) = error.value.problems
    assert problem.line == 3
    assert reason in problem.reason


def test_jsonl_reads_bom_crlf_gz_and_lists(tmp_path: Path) -> None:
    text = '{"prompt": ["a", " b  c "], "completion": "d", "label": false}\r\n'
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(b"\xef\xbb\xbf" + text.encode())
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        (row,) = load_jsonl(path)
        assert row.texts == ("a", " b  c ")
        assert row.is_safe is False


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_jsonl(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the file is empty"):
        load_jsonl(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(GOOD.encode() + b"\n\xe9\n")
    with pytest.raises(DataError, match=r"latin\.jsonl:2: not UTF-8"):
        load_jsonl(tmp_path / "latin.jsonl")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        load_jsonl(tmp_path / "torn.jsonl.gz")


def jsonl_source(path: Path, rows: list[dict], **fields: object) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name=path.stem, format="jsonl", path=str(path), **fields)


def turn(prompt: str | list[str], reply: str, label: bool, talk: str, **more: object) -> dict:
    return {"prompt": prompt, "completion": reply, "label": label, "conversation": talk, **more}


def test_sets_share_no_conversation_and_no_pair(tmp_path: Path) -> None:
    test = [turn("a", "x", True, "t1"), turn("b", "y", False, "t2")]
    policy = [
        turn("c", "x", True, "p1"),
        turn("d", "y", False, "p2"),
        turn("e", "z", False, "t1"),  # a conversation of test
        turn("A", "X", True, "p3"),  # a pair of test, but for case
    ]
    judge = [turn("f", "x", True, "j1"), turn("g", "y", False, "j2"), turn("h", "z", True, "p1")]
    sets = load_sets(
        Data(
            policy=[jsonl_source(tmp_path / "policy.jsonl", policy)],
            judge=[jsonl_source(tmp_path / "judge.jsonl", judge)],
            test=[jsonl_source(tmp_path / "test.jsonl", test)],
        )
    )
    assert [row.texts[0] for row in sets.policy] == ["c", "d"]
    assert [row.texts[0] for row in sets.judge] == ["f", "g"]
    assert len(sets.test) == 2
    assert sets.dropped["policy: also in test"] == 2
    assert sets.dropped["judge: also in policy or test"] == 1
    assert "2 toxic" not in dict(sets.described())["data: policy"]


def test_all_faulty_sources_are_reported_together(tmp_path: Path) -> None:
    missing = [
        Source(name=n, format="jsonl", path=str(tmp_path / f"{n}.jsonl")) for n in ("p", "j", "t")
    ]
    with pytest.raises(DataError) as error:
        load_sets(Data(policy=[missing[0]], judge=[missing[1]], test=[missing[2]]))
    assert len(error.value.problems) == 3


def test_one_label_only_and_human_policy_are_refused(tmp_path: Path) -> None:
    safe = jsonl_source(tmp_path / "safe.jsonl", [turn("a", "b", True, "1")])
    with pytest.raises(DataError, match="needs safe and toxic replies"):
        load_sets(Data(policy=[safe], judge=[safe], test=[safe]))
    human = safe.model_copy(update={"speaker": "all"})
    with pytest.raises(ValidationError, match="use speaker: bot"):
        Data(policy=[human], judge=[safe], test=[safe])


def test_canned_replies_leave_targets_and_histories(tmp_path: Path) -> None:
    rows = [
        turn(["a", CANNED, "b"], "fine", True, "1"),
        turn("a", CANNED, True, "2"),
    ]
    source = jsonl_source(tmp_path / "a.jsonl", rows)
    loaded = load_source(source)
    assert loaded.left_out["canned reply"] == 1
    assert [row.texts for row in loaded.rows] == [("a", "b")]
    kept = load_source(source.model_copy(update={"keep_canned": True}))
    assert [len(row.history) for row in kept.rows] == [3, 1]
    test_rows = load_source(source, drop_replies=False).rows
    assert len(test_rows) == 2
    assert len(scorable(test_rows)) == 1


def test_history_length_by_speaker(tmp_path: Path) -> None:
    turns = ["1", "2", "3", "4"]
    rows = [turn(turns, "x", True, "1"), turn(turns, "y", True, "2", speaker="human")]
    source = jsonl_source(tmp_path / "a.jsonl", rows, speaker="all", history_lines=3)
    bot, human = load_source(source).rows
    assert bot.history == (Turn("user", "2"), Turn("assistant", "3"), Turn("user", "4"))
    assert human.history == (Turn("user", "3"), Turn("assistant", "4"))


def test_shares_of_conversations_are_complementary(tmp_path: Path) -> None:
    rows = [turn("a", f"r{n}", True, f"c{n % 40}") for n in range(80)]
    low = load_source(jsonl_source(tmp_path / "a.jsonl", rows, share=(0.0, 0.4))).rows
    high = load_source(jsonl_source(tmp_path / "a.jsonl", rows, share=(0.4, 1.0))).rows
    assert len(low) + len(high) == 80
    assert {r.conversation for r in low}.isdisjoint(r.conversation for r in high)
    assert 0 <= share_position("anything") < 1


def test_histories_are_drawn_one_a_conversation_first() -> None:
    rows = [
        Dialogue((f"{talk}-{n}",), "x", True, "t", f"c{talk}")
        for talk in range(5)
        for n in range(4)
    ]
    rows.append(Dialogue((), "no history", True, "t", "c9"))
    rows.append(Dialogue(("human",), "x", True, "t", "c8", "human"))
    drawn = draw_histories(rows, 7, seed=1)
    assert len({row.conversation for row in drawn[:5]}) == 5
    assert len(drawn) == 7
    assert drawn == draw_histories(rows, 7, seed=1)
    assert drawn != draw_histories(rows, 7, seed=2)
    assert len(draw_histories(rows, None, seed=1)) == 20


def test_weights_repeat_and_thin_by_the_seed(tmp_path: Path) -> None:
    rows = [turn(f"a{n}", f"b{n}", n % 2 == 0, str(n)) for n in range(40)]
    source = jsonl_source(tmp_path / "a.jsonl", rows)
    loaded = load_source(source).rows

    def weighed(weight: float, seed: int) -> list[str]:
        sources = [source.model_copy(update={"weight": weight})]
        return [row.reply for row in apply_weights(loaded, sources, seed)]

    assert weighed(1, 0) == [row.reply for row in loaded]
    assert len(weighed(0.25, 0)) == 10
    assert weighed(0.25, 0) == weighed(0.25, 0) != weighed(0.25, 1)
    assert Counter(Counter(weighed(2.25, 0)).values()) == {2: 30, 3: 10}


def test_weights_of_test_sets_and_of_twins_are_refused(tmp_path: Path) -> None:
    source = jsonl_source(tmp_path / "a.jsonl", [turn("a", "b", True, "1")])
    heavy = source.model_copy(update={"weight": 2.0})
    with pytest.raises(ValidationError, match="test sets are taken whole"):
        Data(policy=[source], judge=[source], test=[heavy])
    with pytest.raises(ValidationError, match="differ in weight"):
        Data(policy=[source, heavy], judge=[source], test=[source])


def test_rows_without_a_label_train_nothing_and_are_counted(tmp_path: Path) -> None:
    def file(name: str, kept: int) -> Source:
        rows = [turn(f"{name}{n}", f"b{n}", n % 2 == 0, f"{name}{n}") for n in range(kept)]
        bare = [{k: v for k, v in row.items() if k != "label"} for row in rows]
        mixed = [
            {**b, "label": row["label"]} if i > 1 else b
            for i, (b, row) in enumerate(zip(bare, rows, strict=True))
        ]
        source = jsonl_source(tmp_path / f"{name}.jsonl", mixed)
        return source.model_copy(update={"label": "none", "name": name})

    sets = load_sets(Data(policy=[file("p", 6)], judge=[file("j", 6)], test=[file("t", 6)]))
    assert (len(sets.policy), len(sets.judge), len(sets.test)) == (4, 4, 6)
    assert sets.dropped["policy: without a label"] == 2
    assert len(scorable(sets.test)) == 4


def test_human_turns_are_answered_where_a_source_has_only_those(tmp_path: Path) -> None:
    row = {**turn("hi", "how is the weather?", False, "1"), "speaker": "human"}
    source = jsonl_source(tmp_path / "a.jsonl", [row])
    human = source.model_copy(update={"speaker": "human"})
    rows = load_source(human, drop_replies=False).rows
    (answered,) = draw_histories(answer_candidates(rows, [human]), None, 0)
    assert answered.texts == ("hi", "how is the weather?")
    assert draw_histories(answer_candidates(rows, [source]), None, 0) == []
    assert answer_candidates(rows, [human.model_copy(update={"answered": False})]) == []


def test_counts_and_overlaps() -> None:
    def row(history: str, reply: str, is_safe: bool | None, name: str) -> Dialogue:
        return Dialogue((history,), reply, is_safe, "a", name)

    one = [
        row("a", "b c", True, "1"),
        row("a", "b c", True, "1"),
        row("a", "b c", False, "1"),
        row("x", "do you want to talk about something else?", None, "2"),
    ]
    counts = count("train", one)
    assert counts.rows == 4
    assert (counts.safe, counts.toxic, counts.unlabelled) == (2, 1, 1)
    assert (counts.duplicates, counts.contradictions, counts.canned) == (2, 1, 1)
    assert (counts.conversations, counts.words_median, counts.lines_max) == (2, 2, 1)
    other = [row("A", "B c", True, "3"), row("a", "z", True, "4"), row("q", "q", True, "2")]
    (shared,) = overlaps({"train": one, "test": other})
    assert shared == ("train", "test", 1, 2, 1)
    assert count("empty", []).rows == 0
    assert overlaps({"a": [], "b": []})[0][2:] == (0, 0, 0)


def test_the_mask_shows_only_what_is_labelled_safe() -> None:
    rows = [
        Dialogue(("hi", "you goose"), "that is unkind", True, "a", "1"),
        Dialogue(("hi",), "you goose", False, "a", "1"),
        Dialogue(("hello",), "you goose", True, "a", "2"),
    ]
    mask = TextMask(rows)
    assert mask.apply(rows[0]) == ("[masked: 1 words]", "[masked: 2 words]", "that is unkind")
    assert mask.apply(rows[2])[-1] == "[masked: 2 words]"  # it is toxic elsewhere


def test_bad_rows_without_a_speaker_are_human_prompts(tmp_path: Path) -> None:
    """ParlAI's human_nonadv_safety_eval: id, text, labels, episode_done."""
    path = tmp_path / "test.txt"
    path.write_text("id:wikiToxicComments\ttext:silly goose\tlabels:__notok__\tepisode_done:True\n")
    (row,) = load_bad(path)
    assert (row.speaker, row.reply, row.is_safe) == ("human", "silly goose", False)
