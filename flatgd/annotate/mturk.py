"""A study on Amazon Mechanical Turk: one HIT for each item, and the answers of its result file.

Mechanical Turk no longer accepts new customers; this is for existing accounts. `hits` gives the
arguments of its CreateHIT call (https://docs.aws.amazon.com/AWSMechTurk/latest/AWSMturkAPI/), with
the page as HTMLQuestion. The CSV of results has one row for each assignment: WorkerId,
AssignmentStatus, WorkTimeInSeconds, and Answer.NAME for every field of the form.
"""

from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flatgd.annotate.pairs import LABELS
from flatgd.annotate.study import CHOICES, Answer, Study, field_of, turns_of
from flatgd.io.records import parse_rows, text_field, write_jsonl
from flatgd.io.tables import parse_table

SCHEMA = (
    "http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2011-11-11/HTMLQuestion.xsd"
)
# The qualifications and the pay of the paper's Figure 3
MASTERS = "2F1QJWKUDD8XADTFD2Q0G6UTO95ALH"  # of production; the sandbox has another
REWARD, HOUR = "0.50", 3600
QUALIFICATIONS: list[dict[str, Any]] = [
    {  # per cent of assignments approved
        "QualificationTypeId": "000000000000000000L0",
        "Comparator": "GreaterThanOrEqualTo",
        "IntegerValues": [95],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # assignments approved
        "QualificationTypeId": "00000000000000000040",
        "Comparator": "GreaterThanOrEqualTo",
        "IntegerValues": [5000],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # country of residence
        "QualificationTypeId": "00000000000000000071",
        "Comparator": "In",
        "LocaleValues": [{"Country": name} for name in ("AU", "CA", "GB", "US")],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # Masters
        "QualificationTypeId": MASTERS,
        "Comparator": "Exists",
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
    {  # accepts adult content
        "QualificationTypeId": "00000000000000000060",
        "Comparator": "EqualTo",
        "IntegerValues": [1],
        "ActionsGuarded": "DiscoverPreviewAndAccept",
    },
]


class Hit(TypedDict):
    """The arguments of CreateHIT. `Reward` is in US dollars; times are in seconds."""

    Title: str
    Description: str
    Keywords: str
    Question: str
    MaxAssignments: int
    Reward: str
    AssignmentDurationInSeconds: int
    LifetimeInSeconds: int
    AutoApprovalDelayInSeconds: int
    QualificationRequirements: list[dict[str, Any]]


def hits(study: Study) -> list[Hit]:
    """One HIT for each item."""
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
                    item=item, turns=turns_of(item), study=study, labels=LABELS, field_of=field_of
                )
            ),
            "MaxAssignments": study.votes,
            "Reward": REWARD,
            "AssignmentDurationInSeconds": HOUR,
            "LifetimeInSeconds": 7 * 24 * 3600,
            "AutoApprovalDelayInSeconds": 3 * 24 * 3600,
            "QualificationRequirements": QUALIFICATIONS,
        }
        for item in study.items
    ]


def _question(page: str) -> str:
    """A page as HTMLQuestion.

    The page's text is escaped, so it cannot end the CDATA section. Control characters, which XML
    does not allow, become spaces.
    """
    page = "".join(c if c.isprintable() or c == "\n" else " " for c in page)
    return (
        f'<HTMLQuestion xmlns="{SCHEMA}"><HTMLContent><![CDATA[{page}]]></HTMLContent>'
        "<FrameHeight>0</FrameHeight></HTMLQuestion>"
    )


def write(study: Study, folder: Path) -> list[Path]:
    """Write the file to create HITs from, one on each line."""
    path = folder / "mturk.jsonl"
    write_jsonl(path, hits(study))
    return [path]


def answers(path: Path, study: Study, skipped: Counter[str] | None = None) -> list[Answer]:
    """Read the answers of a result file; everything else in it is counted in `skipped`.

    Raises DataError if the file is no such file or belongs to another study.
    """
    counts: Counter[str] = Counter() if skipped is None else skipped
    items = {item["id"] for item in study.items}
    return parse_rows(path, parse_table(path), lambda row: _row_answers(row, items, study, counts))


def _row_answers(
    row: dict[str, str], items: set[str], study: Study, counts: Counter[str]
) -> list[Answer]:
    fields = {f"Answer.{field_of(name)}": name for name in study.questions}
    if missing := [name for name in ("Answer.item", *fields) if name not in row]:
        raise ValueError(_missing_column(missing[0], row, fields.get(missing[0])))
    if row.get("AssignmentStatus") == "Rejected":
        counts["rejected assignments"] += 1
        return []
    for column in row:
        if column.startswith("Answer.") and column not in {"Answer.item", *fields} and row[column]:
            counts[f"answers in {column!r}, which is not a question of the study"] += 1
    item, seconds = row["Answer.item"], row.get("WorkTimeInSeconds", "")
    annotator = text_field(row, "WorkerId")
    if item not in items:
        raise ValueError(f"{item!r} is not an item of this study")
    found = []
    for field, question in fields.items():
        choice = row[field]
        if choice not in CHOICES:
            raise ValueError(
                f"{question!r} is answered by {choice!r}; expected one of {', '.join(CHOICES)}"
            )
        taken = float(seconds) if seconds.isdigit() else None
        found.append(Answer(item, annotator, question, choice, taken))
    return found


def _missing_column(column: str, row: dict[str, str], question: str | None) -> str:
    """Why a table is not a result file of this study."""
    if "annotation_id" in row:
        return (
            "this is Label Studio's CSV, which has the task's number in place of the item's id; "
            "export the project as JSON"
        )
    purpose = f" (the answers to {question!r})" if question else ""
    return (
        f"no column {column!r}{purpose}; expected Mechanical Turk's CSV of results for the form "
        f"that `flatgd annotate export` writes; the columns are {', '.join(row)}"
    )
