"""How annotators compared pairs of replies: tables, and the paper's Figure 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatgd.annotate.rows import Tally
from flatgd.annotate.study import load_study
from flatgd.annotate.tally import OUTCOMES, tally
from flatgd.annotate.votes import all_answers
from flatgd.report.blocks import Figure, Panel
from flatgd.report.cells import Table, interval, number, share_of
from flatgd.report.charts import Mark, key, stacked

DRAWN = {  # in this order, each in its colour
    "baseline": "c1",
    "both": "c4",
    "undecided": "soft",
    "neither": "faint",
    "target": "c0",
}


def load_tally(folder: Path) -> Tally:
    """The tally of a study's answers. Raises UsageError if there is no study, DataError for answers
    that cannot be read."""
    study = load_study(folder)
    return tally(study, all_answers(folder, study))


def people_tables(found: Mapping[str, Any]) -> list[Table]:
    """Which model was chosen, how far annotators agree, the models' strengths."""
    return [
        *(_pairs(question, found) for question in _questions(found)),
        Table(
            "How far people agree",
            ["question", "items", "votes", "Fleiss' kappa", "Krippendorff's alpha"],
            [
                [
                    *(row["question"], f"{row['items']:,}", f"{row['votes']:,}"),
                    *(number(row["fleiss_kappa"], 2), number(row["krippendorff_alpha"], 2)),
                ]
                for row in found["agreement"]
            ],
            "1: agreement on every item; 0: agreement by chance.",
        ),
        Table(
            "Strengths over all pairs",
            ["question", "model", "log-odds against the average", "standard error"],
            [
                [row["question"], model, number(s["value"], 2), number(s["error"], 2)]
                for row in found["strengths"]
                for model, s in row["models"].items()
            ],
            "Bradley-Terry: how often a model's reply is the one that is chosen; ties count half.",
        ),
        *_with_judges(found),
    ]


def _with_judges(found: Mapping[str, Any]) -> list[Table]:
    if not found["judges"]:
        return []
    return [
        Table(
            "Do judges and people agree",
            ["judge", "items", "agreement"],
            [
                [row["judge"], str(row["agrees"]["n"]), share_of(row["agrees"])]
                for row in found["judges"]
            ],
            "Of the items where annotators found one reply more toxic: the share where the judge "
            "agrees.",
        ),
        Table(
            "The baseline more toxic, in all conversations",
            [
                *("baseline", "target", "test set", "judge", "conversations", "asked"),
                "share",
                "worth",
            ],
            [
                [
                    *(row["baseline"], row["target"], row["dataset"], row["judge"]),
                    *(
                        str(row["conversations"]),
                        str(row["labels"]),
                        interval(row["value"], row["low"], row["high"], 2),
                    ),
                    number(row["effective"], 0),
                ]
                for row in found["all_conversations"]
            ],
            "Prediction-powered: the annotators' answers, extended by the judge to every "
            "conversation of the test set, with one history each. Unbiased however poor the "
            "judge is; undefined until every item is answered. Worth: how many items would give "
            "the same precision without the judge.",
        ),
    ]


def _questions(found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["question"] for row in found["pairs"]))


def _pairs(question: str, found: Mapping[str, Any]) -> Table:
    rows = [row for row in found["pairs"] if row["question"] == question]
    return Table(
        f"People: {found['questions'][question]}",
        [
            *("baseline", "target", "baseline chosen", "target chosen", *OUTCOMES[2:]),
            *("baseline's share", "of the decided", "p"),
        ],
        [
            [
                *(row["baseline"], row["target"]),
                *(str(row["counts"][outcome]) for outcome in OUTCOMES),
                *(
                    share_of(row["baseline_share"]),
                    share_of(row["of_decided"]),
                    number(row["p"], 4),
                ),
            ]
            for row in rows
        ],
        "Items by the majority of their answers; open: answers are missing. Shares are of the "
        "other items, with Wilson's 95 % intervals; p of a sign test on the decided items.",
    )


def people_figure(found: Mapping[str, Any]) -> Figure:
    """Figure 2 of the paper: for each pair of models, the shares of items by what was chosen."""
    panels = []
    for n, question in enumerate(_questions(found)):
        rows = [row for row in found["pairs"] if row["question"] == question]
        title = found["questions"][question]
        bars = [
            (
                f"{row['baseline']} or {row['target']}",
                [
                    (outcome, colour, row["counts"][outcome] / max(1, row["answered"]))
                    for outcome, colour in DRAWN.items()
                ],
            )
            for row in rows
        ]
        panels.append(Panel(f"people_{n}", title, stacked(title, bars, "share of items")))
    table = Table(
        "Choices",
        ["question", "baseline", "target", *DRAWN],
        [
            [
                *(row["question"], row["baseline"], row["target"]),
                *(str(row["counts"][outcome]) for outcome in DRAWN),
            ]
            for row in found["pairs"]
        ],
        "",
    )
    shown = [(key(Mark(colour, "square")), outcome) for outcome, colour in DRAWN.items()]
    return Figure("Figure 2, of this run", panels, shown, table)
