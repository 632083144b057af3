"""The data of a recipe: four sets, each a list of sources."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from flatgd.config.columns import KEYS
from flatgd.config.labels import Labels
from flatgd.config.section import Section, about, resolve_path
from flatgd.errors import nearest

Format = Literal[
    "aegis",
    "bad",
    "bbf",
    "beavertails",
    "convabuse",
    "diasafety",
    "dices",
    "hh",
    "hub",
    "jsonl",
    "pku_saferlhf",
    "prosocial",
    "table",
    "toxic_chat",
    "toxichat",
    "wildguardmix",
    "xstest",
]
FORMATS: tuple[str, ...] = get_args(Format)
TABLES = ("table", "jsonl")  # two names of one format
ONLY_TABLES = {"columns", "toxic_values", "safe_values", "label", "roles"}
ONLY_HUB = {"subset", "max_rows"}
SPLITS = ("train", "val", "test")
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq")
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


def _source_path(value: Any, info: ValidationInfo) -> Any:
    """A local path, or the name of a data set on the hub as it was written."""
    return value if info.data.get("format") == "hub" else resolve_path(value, info)


def format_of(name: str) -> Format | None:
    """The format of a file by its name; None where the name does not tell.

    >>> format_of("replies.csv.gz"), format_of("bad/train.txt")
    ('table', None)
    """
    stem = name.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return "table" if stem.endswith(TABLE_SUFFIXES) else None


class Source(Section):
    """One data set, or a part of one."""

    name: str = Field(
        pattern=r"^\w[\w. +-]*$",
        max_length=100,
        json_schema_extra=about(values="letters, digits, _ . + - and spaces"),
    )
    """Name of the source in tables and files."""
    format: Format
    """What the file is. Without it, JSON lines, a JSON array, CSV, TSV and Parquet are read as a
    table (jsonl is another name of table). hub reads a data set by its name on the hub."""
    path: Annotated[Path | str, BeforeValidator(_source_path)]
    """A file, the folder of a published data set, or with `format: hub` the name of a data set."""
    split: str = "train"
    """Split to read from a folder, from a file that holds all splits (bbf), or from the hub. train,
    val or test; a set on the hub may have others."""
    subset: str | None = None
    """hub only. Subset (configuration) of the data set."""
    max_rows: int | None = Field(None, ge=1, json_schema_extra=about("rows"))
    """hub only. Reads the first rows alone, and streams them instead of downloading the set."""
    speaker: Literal["bot", "human", "all"] = "bot"
    """Whose turns count as replies. Human turns may train a judge, never a policy."""
    share: tuple[float, float] = Field(
        (0.0, 1.0), json_schema_extra=about("of the conversations", "0 <= start < end <= 1")
    )
    """Slice of the conversations to use. A hash of its name puts each conversation in [0, 1)."""
    history_lines: int = Field(3, ge=1, json_schema_extra=about("turns"))
    """Newest turns of a history to keep before a bot's reply. A human's reply gets one fewer."""
    answered: bool = True
    """Test sets only. Whether the models answer its histories; its replies are always scored."""
    histories: int | None = Field(None, ge=1, json_schema_extra=about("histories"))
    """Test sets only. Histories of this source to answer, instead of `generate.histories`."""
    keep_canned: bool = False
    """Whether canned replies ("do you want to talk about something else?") are kept."""
    weight: float = Field(1.0, gt=0, le=100, json_schema_extra=about("times"))
    """How often each row is used. 2 uses a row twice; 0.25 uses a quarter of the rows, drawn by the
    seed. Not for test and eval sets."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Tables and hub only. Our key for each column of the file, as {completion: tweet}. Other
    columns are ignored."""
    toxic_values: tuple[str, ...] = ()
    """Tables and hub only. Labels that mean toxic. Without it, true means safe and false toxic."""
    safe_values: tuple[str, ...] = ()
    """Tables and hub only. Labels that mean safe. With both lists, any other label is an error."""
    label: Literal["safe", "toxic", "none"] | None = None
    """Tables and hub only. Label of the rows that have none."""
    votes: Literal["keep", "majority", "drop"] = "keep"
    """What to do with rows that label one reply both ways. keep uses them all, majority keeps one
    row (none at a tie), drop removes them."""
    roles: dict[str, Literal["user", "assistant", "system"]] = Field(default_factory=dict)
    """Tables and hub only. What role names of your own mean, as {customer: user}. Case does not
    matter."""
    label_by: Literal["question", "statement", "refusal", "topic_change", "evasive"] | None = None
    """Labels replies by their words instead of the data's labels: replies of this kind count as
    safe, all others as toxic."""

    @property
    def file(self) -> Path:
        """The path of a source that is not on the hub."""
        return Path(self.path)

    @field_validator("toxic_values", "safe_values", mode="before")
    @classmethod
    def _as_text(cls, values: object) -> object:
        return [str(value) for value in values] if isinstance(values, list) else values

    @model_validator(mode="before")
    @classmethod
    def _format_follows_the_file(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "format" in raw or not isinstance(raw.get("path"), str):
            return raw
        if (found := format_of(raw["path"])) is None:
            raise ValueError(
                f"the name {raw['path']!r:.80} does not tell the format; add format: one of "
                f"{', '.join(FORMATS)}"
            )
        return {"format": found, **raw}

    @model_validator(mode="after")
    def _check(self) -> "Source":
        is_table = self.format in (*TABLES, "hub")
        if (given := ONLY_TABLES & self.model_fields_set) and not is_table:
            raise ValueError(f"{sorted(given)[0]} is for tables, not for format {self.format}")
        if (given := ONLY_HUB & self.model_fields_set) and self.format != "hub":
            raise ValueError(f"{sorted(given)[0]} is for format hub, not {self.format}")
        if self.format != "hub" and self.split not in SPLITS:
            raise ValueError(f"split must be train, val or test, got {self.split!r}")
        Labels(self.safe_values, self.toxic_values)
        if self.label_by and self.votes != "keep":
            raise ValueError("label_by labels replies by their words, so votes has no effect")
        if wrong := [name for name in self.columns if name not in KEYS]:
            raise ValueError(f"columns: unknown {wrong[0]!r}{nearest(wrong[0], list(KEYS))}")
        if not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share must be two rising numbers in 0..1, got {list(self.share)}")
        return self


class Data(Section):
    """The sets of a run. No two of them share a conversation."""

    policy: list[Source] = Field(min_length=1)
    """Trains the experts and the methods."""
    judge: list[Source] = Field(min_length=1)
    """Trains the reporting judge and sets the threshold of every judge."""
    test: list[Source] = Field(min_length=1)
    """Labelled replies to score, and histories for the models to answer. Trains nothing."""
    eval: list[Source] = Field(default_factory=list)
    """Evaluated while experts and methods are trained (`train.eval_strategy`). Trains nothing. Rows
    that also stand in another set are left out here."""
    skip_bad: bool = False
    """Whether unreadable rows are skipped and listed in rejected.jsonl. If not, they are errors."""

    @model_validator(mode="after")
    def _check(self) -> "Data":
        for source in (*self.policy, *self.judge, *self.eval):
            if source.histories is not None:
                raise ValueError(f"{source.name!r} has histories, which is for test sets")
        for name, part in (("test", self.test), ("eval", self.eval)):
            if weighted := [source.name for source in part if source.weight != 1]:
                raise ValueError(
                    f"{name}: {weighted[0]!r} has a weight; {name} sets are taken whole"
                )
        for source in self.test:  # rows know the name of their source and nothing else of it
            first = next(other for other in self.test if other.name == source.name)
            for field in ("speaker", "answered", "history_lines", "histories"):
                if getattr(first, field) != getattr(source, field):
                    raise ValueError(
                        f"test: two sources named {source.name!r} differ in {field}; rename one"
                    )
        for part in (self.policy, self.judge):
            weights = {source.name: source.weight for source in part}
            if other := [s.name for s in part if s.weight != weights[s.name]]:
                raise ValueError(f"two sources named {other[0]!r} differ in weight; rename one")
        for name, part in (("policy", self.policy), ("eval", self.eval)):
            for source in part:
                if source.speaker != "bot":
                    raise ValueError(
                        f"{name}: {source.name!r} takes speaker {source.speaker!r}; a policy "
                        "learns replies, so use speaker: bot (human turns may train the judge)"
                    )
        return self
