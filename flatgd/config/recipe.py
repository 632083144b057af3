"""A recipe: everything a run depends on, in one YAML file.

Unknown keys are refused with the nearest name, and all faults are told at once. `train:` and
`experts:` are passed on to FlatGDConfig by name; their keys are checked against it without
importing torch's world (see `check`).
"""

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from flatgd.config.columns import KEYS
from flatgd.config.labels import Labels
from flatgd.errors import nearest

PACKAGE = Path(__file__).parent.parent
PLACING = ("method", "start", "sampled_from")  # keys of `methods` that are no fields of a method
Format = Literal["bad", "bbf", "convabuse", "diasafety", "hh", "jsonl", "prosocial", "toxichat"]


def _resolve(value: Any, info: Any) -> Any:
    """`demo:NAME` is a file that ships with flatgd; a relative path starts at the recipe."""
    if not isinstance(value, str):
        return value
    if value.startswith("demo:"):
        return PACKAGE / "demo" / value.removeprefix("demo:")
    folder = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(folder / Path(value).expanduser()))


LocalPath = Annotated[Path, BeforeValidator(_resolve)]


def _resolve_model(value: Any, info: Any) -> Any:
    """A folder, by its whole path, if there is one; else the name of a model on the hub."""
    if isinstance(value, str) and not value.startswith("demo:"):
        local = _resolve(value, info)
        is_path = value.startswith((".", "/", "~"))
        return os.path.abspath(local) if is_path or local.is_dir() else value
    return str(_resolve(value, info)) if isinstance(value, str) else value


ModelName = Annotated[str, BeforeValidator(_resolve_model)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Section):
    """One data set, or a part of one."""

    name: str = Field(pattern=r"^\w[\w. +-]*$")
    """The name in tables and files."""
    format: Format
    """How the file is written; jsonl also reads a JSON array, CSV and TSV."""
    path: LocalPath
    """A file, or a folder with the data set's published files; of those, `split` is read."""
    split: Literal["train", "val", "test"] = "train"
    """Of a folder, or of a file that holds all splits (bbf)."""
    speaker: Literal["bot", "human", "all"] = "bot"
    """Whose turns count as replies. Human turns may train a judge, never a policy."""
    share: tuple[float, float] = (0.0, 1.0)
    """Which conversations, as a slice of [0, 1): a conversation's place is a hash of its name."""
    history_lines: int = Field(3, ge=1)
    """Lines of history kept before a bot's turn; before a human's, one fewer."""
    answered: bool = True
    """Test sets only: whether the models answer its histories, beside scoring its replies."""
    histories: int | None = Field(None, ge=1)
    """Test sets only: histories to answer of this one, instead of `generate.histories`."""
    keep_canned: bool = False
    """Keep canned replies ("do you want to talk about something else?")."""
    weight: float = Field(1.0, gt=0, le=100)
    """Not of test sets: 1 = each row once, 2 = twice, 0.25 = a quarter, drawn by the seed."""
    columns: dict[str, str] = {}
    """jsonl: which key or column holds what of ours, as {completion: tweet}; others are ignored."""
    toxic_values: tuple[str, ...] = ()
    """jsonl: the labels that mean toxic; without it, a label is true (safe) or false (toxic)."""
    safe_values: tuple[str, ...] = ()
    """jsonl: the labels that mean safe. Beside toxic_values, any other label is an error."""
    label: Literal["safe", "toxic", "none"] | None = None
    """jsonl: the label of rows that carry none."""
    votes: Literal["keep", "majority", "drop"] = "keep"
    """Rows that label one reply both ways. keep: all, counted; majority: one row, none at a tie;
    drop: none."""
    roles: dict[str, Literal["user", "assistant", "system"]] = {}
    """jsonl: what role names of your own mean, as {customer: user}; any case."""
    label_by: Literal["question", "statement", "refusal", "topic_change", "evasive"] | None = None
    """Another attribute than safety: replies of this kind count as safe, others as toxic, by the
    patterns of flatgd/behaviour.py and whatever the data's own labels."""

    @field_validator("toxic_values", "safe_values", mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        return [str(value) for value in values] if isinstance(values, list) else values

    @model_validator(mode="after")
    def _check(self) -> "Source":
        own = {"columns", "toxic_values", "safe_values", "label", "roles"}
        if (given := own & self.model_fields_set) and self.format != "jsonl":
            raise ValueError(f"{sorted(given)[0]} is for format jsonl, not {self.format}")
        Labels(self.safe_values, self.toxic_values)
        if self.label_by and self.votes != "keep":
            raise ValueError("votes are of no use with label_by, which labels a reply by its words")
        if wrong := [name for name in self.columns if name not in KEYS]:
            raise ValueError(f"columns: unknown {wrong[0]!r}{nearest(wrong[0], list(KEYS))}")
        if not 0 <= self.share[0] < self.share[1] <= 1:
            raise ValueError(f"share must be two rising numbers in 0..1, got {list(self.share)}")
        return self


class Data(Section):
    policy: list[Source] = Field(min_length=1)
    """Trains the experts and the methods."""
    judge: list[Source] = Field(min_length=1)
    """Trains the reporting judge; shares no conversation with `policy`."""
    test: list[Source] = Field(min_length=1)
    """Labelled replies to score, and their histories to answer; trains nothing."""
    eval: list[Source] = []
    """Evaluated while experts and methods are trained (`train.eval_strategy`); trains nothing, and
    shares no conversation with the other sets: its rows give way."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and list them in rejected.jsonl; else they are errors."""

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


class Generate(Section):
    """Sampling, the same for every model."""

    histories: int | None = Field(None, ge=1)
    """Histories to answer of each test set, drawn by conversation; none = all."""
    samples: int = Field(5, ge=1)
    """Replies a history."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    min_new_tokens: int = Field(5, ge=1)
    max_new_tokens: int = Field(32, ge=1)
    batch_size: int = Field(128, ge=1)
    """Histories answered at once."""

    @model_validator(mode="after")
    def _check(self) -> "Generate":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}"
            )
        return self


OF_KIND = {
    ("hf", "trained"): {"model", "separator", "history_lines", "max_tokens", "batch_size"},
    ("hf",): {"toxic_label", "activation", "negate", "template", "human", "bot"},
    ("trained",): {"epochs", "learning_rate", "train_batch_size"},
}


class JudgeSettings(Section):
    """A reporting judge; `data.judge` trains a linear one and sets the threshold of any."""

    kind: Literal["linear", "hf", "trained"] = "linear"
    """linear: trained here in seconds; hf: a Hugging Face sequence classifier; trained: a
    transformer tuned here."""
    name: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")
    """In tables and folders; none = the kind."""
    false_positive_rate: float = Field(0.02, gt=0, lt=1)
    """The threshold lets this share of safe held-out replies through as toxic."""
    model: ModelName | None = None
    """hf, trained: a folder or a hub name; trained: any model flatgd knows, or an encoder."""
    toxic_label: str | None = None
    """hf: the label (or its number) that means toxic; none = found among the model's labels."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """hf: none = what the model's config says."""
    negate: bool = False
    """hf: 1 - score is taken; for a model whose score falls with toxicity, as a reward model's."""
    template: str = "{reply}"
    """hf: its input; {history} and {reply} are filled in."""
    separator: str = "\n"
    """hf, and trained from an encoder: between the lines of the history."""
    human: str = ""
    """hf: before each line of the human, as "Human: "."""
    bot: str = ""
    """hf: before each line of the bot, the reply too."""
    history_lines: int = Field(3, ge=0)
    """hf, trained: how many lines of the history are read."""
    max_tokens: int = Field(512, ge=8)
    """hf, trained: longer inputs lose their oldest text, the history first, then the beginning of
    the reply; how many do is shown. Never more than the model's positions."""
    batch_size: int = Field(64, ge=1)
    """hf, trained: replies judged at once."""
    epochs: float = Field(3.0, gt=0)
    """trained: passes over its rows."""
    learning_rate: float = Field(3e-4, gt=0)
    """trained: for small models; 2e-5 suits those of 100M parameters and more."""
    train_batch_size: int = Field(32, ge=1)
    """trained: rows a step."""

    @property
    def label(self) -> str:
        return self.name or self.kind

    @field_validator("toxic_label", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _check(self) -> "JudgeSettings":
        for kinds, fields in OF_KIND.items():
            if self.kind not in kinds and (own := sorted(self.model_fields_set & fields)):
                raise ValueError(f"{own[0]} is for kind: {' or '.join(kinds)}")
        if self.kind != "linear" and not self.model:
            raise ValueError(f"kind: {self.kind} needs a model, a folder or a hub name")
        if "{reply}" not in self.template:
            raise ValueError("the template must hold {reply}")
        return self


class Sample(Section):
    """Replies that methods learn from: a model's, to the policy's histories, judged in the loop.
    Sampling is that of `generate`."""

    histories: int = Field(400, ge=1)
    """Histories of `data.policy` to answer, drawn by conversation."""
    samples: int = Field(5, ge=2)
    """Replies a history."""
    judge: JudgeSettings = JudgeSettings(name="in_loop")
    """Trained or calibrated on `data.policy`; never one of the reporting judges."""


class Report(Section):
    human_labels: LocalPath | None = None
    """Human labels of sampled replies (`flatgd label` draws them): with them, toxicity is estimated
    without trust in the judge."""
    study: LocalPath | None = None
    """The folder of a study (`flatgd annotate create`) with people's answers, for a chapter."""
    non_inferiority: float = Field(0.1, gt=0, lt=1)
    """A method keeps a quality if it loses less than this share of the yardstick's, at 97.5 %."""
    trade_off_weight: float = Field(0.5, ge=0, le=1)
    """w of the trade-off factor (Eq. 6), toxicity's weight; the report shows all w beside it."""
    wanted: str = Field("safe", pattern=r"^[\w -]+$")
    unwanted: str = Field("toxic", pattern=r"^[\w -]+$")
    """What the attribute is called in tables and findings, where it is another than safety."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples for each interval."""
    samples_shown: int = Field(12, ge=0)
    """Histories shown side by side in the page."""


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    output: LocalPath
    """Folder of the run; made if missing."""
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1)
    """How many are trained and answer, `seed` the first; their spread enters the intervals."""
    backbone: ModelName
    """The model to make safe: a folder or a hub name."""
    expert_backbone: ModelName | None = None
    """What the experts are tuned from; none = the backbone. Another size, the same token map."""
    scorer: ModelName | None = None
    """The model that measures perplexity: larger than the backbone, or no relative of it."""
    data: Data
    max_history_tokens: int = Field(128, ge=8)
    """Newest tokens of the history that a model sees."""
    max_reply_tokens: int = Field(64, ge=4)
    """Tokens of a reply that are trained and scored."""
    turn_separator: str | None = None
    """Between turns, instead of the family's own and of a chat template; not for the scorer."""
    template_date: date = date.fromisoformat("2025-01-01")
    """The day that a chat template prints as today's, in training, generation and chat alike."""
    chat_template_kwargs: dict[str, Any] = {"enable_thinking": False}
    """Variables of the chat template, as {enable_thinking: false}."""
    experts: dict[str, Any] = {}
    """FlatGDConfig fields for the two experts, over those of `train`."""
    train: dict[str, Any] = {}
    """FlatGDConfig fields for every method."""
    methods: dict[str, dict[str, Any] | None] = Field(
        {"clean": {}, "safety_loss": {}, "flatgd": {}}, min_length=1
    )
    """Systems to compare, each with its own options, and for those that are trained FlatGDConfig
    fields over those of `train`. `method`: which one it is, where that is not its name; `start`:
    the model it goes on from, or decodes with, instead of the backbone; `sampled_from`: the model
    whose judged replies it learns from too."""
    sample: Sample = Sample()
    generate: Generate = Generate()
    judges: list[JudgeSettings] = Field([JudgeSettings()], min_length=1)
    """The first one's figures stand in findings and figures; all of them in the tables."""
    report: Report = Report()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        labels = [judge.label for judge in self.judges]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"judges: two are called {twice[0]!r}; give each a name")
        return self

    @property
    def layout(self) -> tuple[Any, ...]:
        """How a dialogue becomes the models' input: what `family_of` takes after the tokenizer."""
        return (
            self.max_history_tokens,
            self.max_reply_tokens,
            self.turn_separator,
            str(self.template_date),
            self.chat_template_kwargs,
        )

    @property
    def models(self) -> list[str]:
        """Every row of the tables: the backbone, both experts, the methods."""
        return ["backbone", "clean_expert", "toxic_expert", *self.methods]

    def training_fields(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """`train` with `overrides` over it; of the two ways to set lambda the override's holds."""
        lambdas = {"flatness_weight", "penalty_share"}
        dropped = lambdas if lambdas & overrides.keys() else set()
        fields = {k: v for k, v in self.train.items() if k not in dropped} | overrides
        is_no = {k for k, v in fields.items() if v is False and k.endswith("_strategy")}
        return fields | dict.fromkeys(is_no, "no")  # YAML reads `no` as false

    def evaluates(self, overrides: dict[str, Any]) -> bool:
        """Whether a training with these overrides is evaluated as it goes."""
        return str(self.training_fields(overrides).get("eval_strategy", "no")) != "no"

    def overrides(self, name: str) -> dict[str, Any]:
        """The fields and options of one model over those of `train`."""
        if name == "toxic_expert":
            return {**self.experts, "snapshots": 0}  # of no use, and to be kept in one place
        entry = self.experts if name == "clean_expert" else self.methods[name] or {}
        return {key: value for key, value in entry.items() if key not in PLACING}

    def kind_of(self, name: str) -> str:
        """Which method an entry of `methods` is."""
        return str((self.methods[name] or {}).get("method", name))

    def start_of(self, name: str) -> str:
        """The model that an entry of `methods` goes on from."""
        return str((self.methods[name] or {}).get("start", "backbone"))

    def sampled_from(self, name: str) -> str | None:
        """The model whose replies an entry of `methods` learns from."""
        source = (self.methods[name] or {}).get("sampled_from")
        return None if source is None else str(source)

    def settings(self, name: str) -> dict[str, Any]:
        """What an entry of `methods` or an expert is set to, as its checkpoint records it."""
        return {
            **self.training_fields(self.overrides(name)),
            "seed": self.seed,
            "max_history_tokens": self.max_history_tokens,
            "max_reply_tokens": self.max_reply_tokens,
        }

    def base_of(self, name: str) -> str:
        """The model that a row of the tables is tuned from."""
        is_expert = name in ("clean_expert", "toxic_expert")
        return (is_expert and self.expert_backbone) or self.backbone

    @property
    def baseline(self) -> str:
        """Clean fine-tuning, what the other models are compared with pair by pair."""
        return next((n for n in self.methods if self.kind_of(n) == "clean"), "clean_expert")
