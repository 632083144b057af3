"""Chatting with models: sessions, the terminal, and saved files. The page in a browser:
test_browser.py."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_blenderbot
from rich.console import Console
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flatgd.chat.models import load_chat_models
from flatgd.chat.page import ChatPage
from flatgd.chat.session import Session, SessionFile, load_session, session_generations
from flatgd.chat.terminal import Terminal
from flatgd.cli.main import app
from flatgd.config.loading import as_text, load_recipe
from flatgd.errors import DataError, FlatGDError, UnsupportedError, UsageError
from flatgd.pipeline.pipeline import Pipeline
from flatgd.run import report


def echo(name: str) -> Any:
    """A model that replies with the history's length, its last line, the sample and the seed."""
    return lambda history, samples, seed: [
        f"{name} {len(history)} {history[-1]} {n} {seed}" for n in range(samples)
    ]


def two(**options: Any) -> Session:
    return Session({"flatgd": echo("f"), "clean": echo("c")}, **options)


def test_all_models_answer_one_history_and_the_chosen_reply_continues_it() -> None:
    session = two(samples=2, seed=5)
    session.send("  hi \n there ")
    assert [r.text for r in session.turns[0].replies] == [
        *(
            "f 1 hi \n there 0 5",
            "f 1 hi \n there 1 5",
            "c 1 hi \n there 0 5",
            "c 1 hi \n there 1 5",
        ),
    ]
    session.pick(4)
    session.send("and now?")
    assert session.history(-1) == ["hi \n there", "c 1 hi \n there 1 5"]
    assert session.turns[1].replies[0].text == "f 3 and now? 0 6"
    session.reset()
    assert session.history() == []
    session.send("anew")
    assert session.turns[0].replies[0].text == "f 1 anew 0 7"
    assert len({row["conversation"] for row in session.rows()}) == 2
    assert len(session.rows()) == 12


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_reply_that_is_none(number: int) -> None:
    session = two()
    with pytest.raises(ValueError, match="there are no replies yet"):
        session.label(1, True)
    session.send("hi")
    for act in (session.pick, lambda n: session.label(n, True)):
        with pytest.raises(ValueError, match=f"there is no reply {number}; the last is 2"):
            act(number)
    with pytest.raises(ValueError, match="the message is empty"):
        session.send("  ")
    with pytest.raises(ValueError, match="there is no judge"):
        session.scores()


def test_a_session_is_data_for_stats_recipes_and_annotators(tmp_path: Path) -> None:
    path, session = tmp_path / "new/session.jsonl", two(samples=2)
    session.send("hi")
    session.label(1, False)
    session.label(3, True)
    session.send("what?")
    session.reset()
    session.send("hello")
    SessionFile(path).write(session)
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600
    saved = load_session(path)
    assert [row.is_safe for row in saved["flatgd"]][:2] == [False, None]
    rows = session_generations(saved, ["clean", "flatgd"])
    assert [len(row["replies"]) for row in rows["clean"]] == [2, 2, 2]
    for ours, theirs in zip(rows["clean"], rows["flatgd"], strict=True):
        for same in ("history", "conversation", "dataset"):
            assert ours[same] == theirs[same]
    with pytest.raises(UsageError, match="no model 'x'; it has flatgd, clean"):
        session_generations(saved, ["x"])
    stats = CliRunner().invoke(
        app, ["data", "stats", "jsonl", str(path), "--set", "label=none", "--json"]
    )
    (counts,) = json.loads(stats.output)["splits"]
    assert (counts["rows"], counts["safe"], counts["toxic"]) == (12, 1, 1)
    convert = ["data", "convert", "jsonl", str(path), "--set", "label=none"]
    message = CliRunner().invoke(app, [*convert, "--to", str(tmp_path / "labelled.jsonl")])
    assert "2 rows; 10 had no label" in message.output
    made = CliRunner().invoke(
        app, ["annotate", "create", str(path), "--to", str(tmp_path / "study")]
    )
    assert "2 pairs to compare" in made.output  # one of each conversation
    with pytest.raises(UsageError, match=r"already exists. Choose another file"):
        SessionFile(path)
    path.write_text('{"prompt": "hi"}\n')
    with pytest.raises(DataError, match=r"session.jsonl:1: no reply"):
        load_session(path)


def test_a_reply_of_no_words_is_left_out_of_the_file(tmp_path: Path) -> None:
    session = Session({"a": lambda *_: [""], "b": lambda history, *_: [history[-1]]})
    session.send("one")
    session.models = {"a": echo("a"), "b": echo("b")}
    session.send("two")
    SessionFile(tmp_path / "s.jsonl").write(session)
    rows = session_generations(load_session(tmp_path / "s.jsonl"), ["a", "b"])
    assert [len(model) for model in rows.values()] == [1, 1]


def typed(session: Session, *lines: str, file: SessionFile | None = None) -> str:
    console = Console(file=io.StringIO(), width=120)
    rest = iter(lines)

    def read(_: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    Terminal(session, console, file).run(read)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_terminal(tmp_path: Path) -> None:
    session = two(judge=lambda pairs: [len(history) / 10 for history, _ in pairs])
    saved = tmp_path / "s.jsonl"
    shown = typed(
        session,
        *("hi", "", "/samples 2", "again", "/pick 4", "/judge", "/toxic 1", "/safe 2", "/nope"),
        *(
            "/pick x",
            "/toxic 9",
            "/samples 0",
            "/help",
            f"/save {saved}",
            "/reset",
            "more",
            "/quit",
            "never",
        ),
    )
    for part in (
        *("flatgd, clean. /help", "1 f 1 hi 0 0", "2 c 1 hi 0 0", "4 c 3 again 1 1"),
        *(
            "reply 4 continues the conversation",
            "(P(toxic) 0.30)",
            "reply 1 is labelled toxic",
            "reply 2 is labelled safe",
        ),
        *(
            "unknown command /nope; /help lists",
            "expected a number, got 'x'",
            "there is no reply 9; the last is 4",
        ),
        *(
            "/reset              begin a new",
            "at least one reply",
            f"saved 6 replies in {saved}; later",
            "1 f 1 more 0 2",
        ),
    ):
        assert part in " ".join(shown.split()) or part in shown
    assert "never" not in shown
    assert len(saved.read_text().splitlines()) == 10  # what came after /save too
    assert "there are no replies yet" in typed(two(), "/judge")


def test_what_models_say_cannot_command_the_terminal() -> None:
    session = Session({"m": lambda *_: ["\x1b[2Jgone [bold]x[/nope] \x07\nsecond line"]})
    shown = typed(session, "hi", "/[/red]")
    assert re.search(r"\n│ second line +│\n", shown)  # inside the model's frame
    assert "\x1b[2J" not in shown
    assert "[bold]x[/nope]" in shown


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = SessionFile(tmp_path / "kept.jsonl")
    lines = ("hi", f"/save {tmp_path / 'file/s.jsonl'}", "/save", "still here")
    shown = typed(two(), *lines, file=kept)
    assert len(kept.path.read_text().splitlines()) == 4
    assert "cannot be written" in shown
    assert "/save FILE" in shown
    assert "still here" in shown


def test_checkpoints_of_a_run_answer_as_they_did_there(recipe_file: Path, tmp_path: Path) -> None:
    """The same replies as `flatgd generate` samples one by one; the run's judge."""
    recipe = load_recipe(recipe_file)
    run = Pipeline(recipe)
    run.run()
    report(run)
    methods = recipe.output / "methods"
    loaded = load_chat_models([str(methods / "flatgd"), str(methods / "clean"), recipe.backbone])
    assert list(loaded.models) == ["flatgd", "clean", Path(recipe.backbone).name]
    speaker, row = run.context.speaker("flatgd"), run.evaluation.histories[0]
    said = loaded.models["flatgd"](row.history, 3, 7)
    settings = recipe.generate.model_copy(update={"samples": 3})
    assert said == speaker.generate([row], settings, 7).texts[0]
    assert said == loaded.models["flatgd"](row.history, 3, 7)
    # the backbone is of no run, but stands beside one
    backbone = loaded.models[Path(recipe.backbone).name](row.history, 3, 7)
    assert backbone == run.context.speaker("backbone").generate([row], settings, 7).texts[0]
    probabilities = loaded.judge([(row.texts, said[0])])
    assert probabilities == pytest.approx(
        list(run.judges.loaded["linear"].score([(row.texts, said[0])]))
    )
    typed_in = CliRunner().invoke(
        app,
        ["chat", str(methods / "flatgd"), "--to", str(tmp_path / "s.jsonl"), "--seed", "3"],
        input="hello\n/judge\n",
    )
    assert typed_in.exit_code == 0
    assert "P(toxic)" in typed_in.output
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 1
    moved = recipe.output.rename(tmp_path / "moved")
    assert load_chat_models([str(moved / "methods/flatgd")]).judge is not None
    moved.rename(recipe.output)
    with pytest.raises(UsageError, match="is a run, not a model"):
        load_chat_models([str(recipe.output)])
    with pytest.raises(UsageError, match="A checkpoint is given twice"):
        load_chat_models([str(methods / "clean")] * 2)
    for guided in ("dexperts", "director"):
        other = recipe.model_copy(update={"methods": {guided: {}}})
        (recipe.output / "recipe.json").write_text(as_text(other))
        (methods / guided).mkdir()
        with pytest.raises(UnsupportedError, match="with the help of other models"):
            load_chat_models([str(methods / guided)])


def test_a_model_of_no_run_has_no_judge(tmp_path: Path) -> None:
    tiny_blenderbot().save_pretrained(tmp_path / "alone")
    byte_tokenizer().save_pretrained(tmp_path / "alone")
    loaded = load_chat_models([str(tmp_path / "alone")])
    assert loaded.judge is None
    assert len(loaded.models["alone"](["hi"], 2, 0)) == 2
    with pytest.raises(FlatGDError, match="no folder"):
        load_chat_models([str(tmp_path / "nothing")])


def test_the_page_over_http(tmp_path: Path) -> None:
    session = two(judge=lambda pairs: [0.5 for _ in pairs])
    page = ChatPage(session, "http://127.0.0.1", SessionFile(tmp_path / "s.jsonl"))
    client = TestClient(page.application(), base_url="http://127.0.0.1")
    path, csrf = page.link.removeprefix("http://127.0.0.1"), page.site.csrf_token(page.token)
    assert client.get("/chat/guess").status_code == 404
    assert client.get("/chat/guess/session.jsonl").status_code == 404
    assert client.post(path, data={"message": "hi"}).status_code == 403
    shown = client.post(path, data={"csrf": csrf, "message": "hi", "samples": "99", "judge": "1"})
    assert shown.text.count("P(toxic) 0.50") == 2 * 20
    for wrong, message in (
        ({"message": " "}, "the message is empty"),
        ({"message": "x", "samples": "many"}, "expected a number"),
        ({"pick": "99"}, "no reply 99"),
        ({"toxic": "0"}, "no reply 0"),
    ):
        assert message in client.post(path, data={"csrf": csrf, **wrong}).text
    client.post(path, data={"csrf": csrf, "safe": "2"})
    assert '"label": true' in client.get(f"{path}/session.jsonl").text
    assert (tmp_path / "s.jsonl").read_text() == session.text()
    session.judge = None
    assert "no judge" in client.get(f"{path}?judge").text
