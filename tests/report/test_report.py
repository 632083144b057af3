"""The report's tables and figures, from small made-up summaries; score rows; recipe as text."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_blenderbot
from huggingface_hub import ModelCard

from flatgd.config.loading import load_recipe
from flatgd.dialogue import Dialogue
from flatgd.judges.base import Judge
from flatgd.judges.calibration import Calibration
from flatgd.models.dialogue_format import format_for
from flatgd.models.likelihood import score_replies
from flatgd.models.speaker import Speaker
from flatgd.pipeline import scoring
from flatgd.pipeline.pipeline import Pipeline
from flatgd.pipeline.scoring import generation_row, given_rows, reply_rows
from flatgd.report.cells import Table, cell, latex, markdown
from flatgd.report.paper import TOXICITY, paper_tables, trade_offs
from flatgd.report.tables import all_numbers, main_tables
from flatgd.run import report

METHODS = ["clean", "safety_loss", "flatgd"]


def row(method: str, metric: str, value: float | None, **more: object) -> dict:
    own = {"method": method, "dataset": "bad", "metric": metric, "value": value}
    return {**own, "low": 0.0, "high": 1.0, "p_holm": None, "n": 5, "excluded": 0, **more}


def summary() -> list[dict]:
    values = {
        "toxicity_any5": (0.3, 0.2, 0.1),
        "toxicity_any1": (0.1, 0.05, 0.02),
        "toxicity_any2": (0.2, 0.1, 0.05),
        "toxicity_any3": (0.25, 0.15, 0.08),
        "perplexity": (30.0, 40.0, 50.0),
        "div1": (0.7, 0.6, 0.65),
    }
    return [
        row(method, metric, numbers[place])
        for metric, numbers in values.items()
        for place, method in enumerate(METHODS)
    ]


def test_table_1_has_the_papers_values_beside_ours() -> None:
    table, factors = paper_tables(summary(), METHODS, 5, 0.5)
    cells = {line[0]: line[1:] for line in table.rows}
    assert cells["flatgd"] == ["0.100", "0.051", "0.038"]
    assert cells["cringe"] == ["", "0.182", "0.376"]
    assert set(TOXICITY) <= cells.keys()
    total = next(line for line in factors.rows if line[0] == "sum")
    assert total[1:] == ["1.0000", "1.0000", "0.5371", "0.6137"]
    own = {line[0]: line[3:] for line in factors.rows}
    assert own["flatgd"] == ["0.0488", "0.0931"]
    assert own["cringe"] == ["0.1900", "0.1203"]  # the paper's, though we did not run it
    assert "●" in next(line for line in factors.rows if line[0] == "flatgd")[1]
    assert "●" not in next(line for line in factors.rows if line[0] == "safety_loss")[2]


def test_trade_off_needs_every_method() -> None:
    some = [r for r in summary() if (r["method"], r["metric"]) != ("flatgd", "div1")]
    (part,) = trade_offs(some, METHODS, 5)
    assert list(part.lack) == ["perplexity"]
    none = [r for r in summary() if r["metric"] != "toxicity_any5"]
    assert trade_offs(none, METHODS, 5) == []
    undefined = [*none, *(row(m, "toxicity_any5", None) for m in METHODS)]
    assert trade_offs(undefined, METHODS, 5) == []


def test_what_is_undefined_is_said_and_what_holds_is_marked() -> None:
    assert cell(row("m", "div1", None, low=None, high=None), 2) == "undefined"
    assert cell(row("m", "div1", 0.5, p_holm=0.01), 2) == "0.50* [0.00, 1.00]"
    assert cell(row("m", "div1", 0.5, p_holm=0.06), 2) == "0.50 [0.00, 1.00]"
    assert cell(None, 2) == ""
    nobody = [row("reference", "div1", None), *summary()]
    assert "undefined" not in str(all_numbers(nobody, METHODS, 5).rows)
    table = main_tables(summary(), METHODS, 5, seeds=3)[0]
    assert "and 3 seeds" in table.note


def test_latex_survives_what_tables_hold() -> None:
    table = Table("50 % of a_b", ["model", "x ↑"], [["a_b & c", "0.5 [0.1, 0.9]"]], "‖g‖ ± {1}")
    text = latex([table])
    body = re.sub(r"\\[&%$#_{}]", "", text)
    assert body.count("&") == 2  # one a line, header and row
    assert r"a\_b \& c & 0.5 [0.1, 0.9] \\" in text
    assert not re.search(r"[↑‖±]", text)
    assert markdown(table).splitlines()[4] == "| a_b & c | 0.5 [0.1, 0.9] |"


class Half:
    def score(self, pairs: list, advance: Callable[[int], None]) -> object:
        import numpy as np

        advance(len(pairs))
        return np.full(len(pairs), 0.5)


def test_relevance_is_what_another_history_costs() -> None:
    """Of two histories each gets the other's: NLL per token given that less NLL given its own."""
    model = tiny_blenderbot().double().eval()
    family = format_for(model.config, byte_tokenizer())
    rows = [Dialogue((text,), "-", None, "o", text) for text in ("hello there", "do you like tea?")]
    generations = [generation_row(r, ["yes", "no, thanks"]) for r in rows]
    judge = Judge(Half(), Calibration(1.0, 0.0, 0.9, 0.5, 1, 1))
    calls: list[int] = []
    scorer = Speaker(model, family)
    found = reply_rows("generated", generations, {"j": judge}, scorer, {"o"}, calls.append)
    assert sum(calls) == 12  # four replies: the judge, and the scorer with each of two histories
    for place in (0, 1):
        own = Dialogue((rows[place].history), "no, thanks", None, "o", "c")
        other = Dialogue((rows[1 - place].history), "no, thanks", None, "o", "c")
        mine, strange = score_replies(model, family, [own, other])
        wanted = (strange.nll - mine.nll) / mine.tokens
        assert found[place]["relevance"][1] == pytest.approx(wanted, abs=1e-5)
        assert found[place]["toxic"]["j"] == [0.5, 0.5]
    unrelated = reply_rows("generated", generations, {"j": judge}, scorer, set(), calls.append)
    assert unrelated[0]["relevance"] == []
    silent = reply_rows("generated", generations, {"j": judge}, None, {"o"}, calls.append)
    assert silent[0]["nll"] == silent[0]["relevance"] == []
    alone = reply_rows("generated", generations[:1], {"j": judge}, scorer, {"o"}, calls.append)
    assert alone[0]["relevance"] == []
    talks = [{**g, "conversation": talk} for g, talk in zip(generations * 2, "aabb", strict=True)]
    others = scoring._others(talks, {"o"})
    assert others == [talks[2]["history"]] * 2 + [talks[0]["history"]] * 2
    assert scoring._others([{**g, "conversation": "a"} for g in generations], {"o"}) == [None, None]


def test_given_replies_without_a_label_are_ordinary() -> None:
    model = tiny_blenderbot()
    family = format_for(model.config, byte_tokenizer())
    rows = [Dialogue(("hi",), "yes", label, "s", "c") for label in (True, None)]
    kinds = [r["kind"] for r in given_rows(Speaker(model, family), rows, lambda done: None)]
    assert kinds == ["labelled", "ordinary"]


def test_every_checkpoint_of_a_run_has_a_card(recipe_file: Path) -> None:
    job = Pipeline(load_recipe(recipe_file, ["methods={clean: {}, flatgd: {}}"]))
    job.run()
    report(job)
    for method in ("clean", "flatgd"):
        card = ModelCard.load(job.context.root / f"methods/{method}/README.md")
        assert card.data.library_name == "transformers"
        assert "## Evaluation" in card.content
        assert "The judge" in card.content
    assert not (job.context.root / "experts/toxic/README.md").exists()
