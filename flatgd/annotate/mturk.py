"""A study on Amazon Mechanical Turk: one HIT an item, and the answers of its result file.

Mechanical Turk takes no new customers any more; this is for those who have an account. `hits` gives
the arguments of its CreateHIT call (https://docs.aws.amazon.com/AWSMechTurk/latest/AWSMturkAPI/),
with the page as HTMLQuestion. The CSV of results has a row an assignment: WorkerId,
AssignmentStatus, WorkTimeInSeconds, and Answer.NAME for every field of the form.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flatgd.annotate.pairs import NAMED
from flatgd.annotate.study import CHOICES, Answer, Study, field_of, turns_of
from flatgd.io.records import parse_rows, text_field, write_jsonl
from flatgd.io.tables import parse_table

Row = dict[str, Any]
SCHEMA = (
    "http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2011-11-11/HTMLQuestion.xsd"
)
# Of a reliable, adult worker who reads English every day
QUALIFICATIONS = [
    {  # share of assignments approved
        "QualificationTypeId": "000000000000000000L0",
        "Comparator": "GreaterThanOrEqualTo",
        "IntegerValues": [97],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # assignments approved
        "QualificationTypeId": "00000000000000000040",
        "Comparator": "GreaterThanOrEqualTo",
        "IntegerValues": [1000],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # where they live
        "QualificationTypeId": "00000000000000000071",
        "Comparator": "In",
        "LocaleValues": [{"Country": name} for name in ("US", "GB", "CA", "AU", "NZ", "IE")],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # adult content is theirs to see
        "QualificationTypeId": "00000000000000000060",
        "Comparator": "EqualTo",
        "IntegerValues": [1],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
]


def hits(study: Study) -> list[Row]:
    """The arguments of CreateHIT for each item. Reward is in US dollars."""
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("mturk.html")
    return [
        {
            "Title": "Compare two replies of chatbots (WARNING: offensive language)",
            "Description": "Read a short conversation and compare two replies to it.",
            "Keywords": "chatbot, dialogue, compare, toxicity",
            "Question": _question(
                template.render(
                    item=item, turns=turns_of(item), study=study, named=NAMED, field_of=field_of
                )
            ),
            "MaxAssignments": study.votes,
            "Reward": "0.15",
            "AssignmentDurationInSeconds": 15 * 60,
            "LifetimeInSeconds": 7 * 24 * 3600,
            "AutoApprovalDelayInSeconds": 3 * 24 * 3600,
            "QualificationRequirements": QUALIFICATIONS,
        }
        for item in study.items
    ]


def _question(page: str) -> str:
    """A page as HTMLQuestion. Text is escaped in it, so none can end the CDATA section; control
    characters, which XML cannot hold, become spaces."""
    page = "".join(c if c.isprintable() or c == "\n" else " " for c in page)
    return (
        f'<HTMLQuestion xmlns="{SCHEMA}"><HTMLContent><![CDATA[{page}]]></HTMLContent>'
        "<FrameHeight>0</FrameHeight></HTMLQuestion>"
    )


def write(study: Study, folder: Path) -> list[Path]:
    """The file to create HITs from, a line each."""
    path = folder / "mturk.jsonl"
    write_jsonl(path, hits(study))
    return [path]


def answers(path: Path, study: Study, left_out: Counter[str] | None = None) -> list[Answer]:
    """The answers of a result file; what else is in it is counted in `left_out`. Raises DataError
    for what is no such file, or of another study."""
    counts: Counter[str] = Counter() if left_out is None else left_out
    asked = {item["id"] for item in study.items}
    return parse_rows(path, parse_table(path), lambda row: _of_row(row, asked, study, counts))


def _of_row(
    row: dict[str, str], asked: set[str], study: Study, counts: Counter[str]
) -> list[Answer]:
    fields = {f"Answer.{field_of(name)}": name for name in study.questions}
    if missing := [name for name in ("Answer.item", *fields) if name not in row]:
        raise ValueError(_not_of_the_form(missing[0], row, fields.get(missing[0])))
    if row.get("AssignmentStatus") == "Rejected":
        counts["rejected assignments"] += 1
        return []
    for column in row:
        if column.startswith("Answer.") and column not in {"Answer.item", *fields} and row[column]:
            counts[f"answers in {column!r}, which is no question of the study"] += 1
    item, seconds = row["Answer.item"], row.get("WorkTimeInSeconds", "")
    who = text_field(row, "WorkerId")
    if item not in asked:
        raise ValueError(f"{item!r} is no item of this study")
    given = []
    for field, question in fields.items():
        choice = row[field]
        if choice not in CHOICES:
            raise ValueError(f"{question!r} answered by {choice!r}, which is no choice")
        took = float(seconds) if seconds.isdigit() else None
        given.append(Answer(item, who, question, choice, took))
    return given


def _not_of_the_form(column: str, row: dict[str, str], question: str | None) -> str:
    """Why a table is no result file of this study."""
    if "annotation_id" in row:
        return (
            "this is Label Studio's CSV, which puts the task's number in place of the item's id; "
            "export the project as JSON"
        )
    of = f" (the answers to {question!r})" if question else ""
    return (
        f"no column {column!r}{of}; expected Mechanical Turk's CSV of results, with the fields of "
        f"the form that `flatgd annotate export` writes; the columns are {', '.join(row)}"
    )
