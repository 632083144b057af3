"""Every path of a run's folder, spelled once. Paths are relative to the run's root.

    recipe.json                       the recipe, so that a checkpoint can be traced to its run
    rejected.jsonl                    rows of the data that could not be read
    experts/{clean,toxic}             checkpoints that plain transformers loads
    methods/NAME                      the same; for a decoding method, its settings alone
    sampled/NAME.jsonl                a model's replies to the policy's histories, to learn from
    sampled/judge                     the judge that labels them; it never reports
    generations/NAME.jsonl            sampled replies to the test histories
    judges/LABEL                      the reporting judges and their quality
    scores/NAME.jsonl                 toxicity, likelihoods, diversity
    report/                           summary.json, tables.md, index.html, figures/, studies
    seeds/SEED, generalisation/WHAT   runs with another seed or other policy data
    states                            the experts' last hidden states, where caching them pays
    features                          what the encoders of embedding judges make of the texts
    .manifests/                       one manifest for each finished artifact

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or an entry of the recipe's `methods`;
of scores also `reference`, for the replies of the test data.
"""

from pathlib import Path

from flatgd.config.names import EXPERTS

RECIPE = "recipe.json"
REJECTED = "rejected.jsonl"
MANIFESTS = ".manifests"
LAST_RECIPE = f"{MANIFESTS}/recipe"  # of the last command that worked here; its changes are shown
IN_LOOP_JUDGE = "sampled/judge"
STATES = "states"
FEATURES = "features"
REPORT = "report"
FIGURES = f"{REPORT}/figures"
SUMMARY = f"{REPORT}/summary.json"
PAGE = f"{REPORT}/index.html"

# In the folder of a checkpoint
SETTINGS = "flatgd.json"  # what it was trained with
PRESET = "set by the method"  # in SETTINGS: fields whose values come from the method
TRAINING_LOG = "training.jsonl"
EVALUATION_LOG = "evaluation.jsonl"
CARD = "README.md"
MODEL_FILES = (".safetensors", ".json", ".txt", ".jinja", ".model")

# In the folder of a judge
QUALITY = "quality.json"
CALIBRATION = "calibration.json"

_FOLDERS = dict(zip(EXPERTS, ("experts/clean", "experts/toxic"), strict=True))


def model(name: str) -> str:
    """The checkpoint of an expert or a method."""
    return _FOLDERS.get(name, f"methods/{name}")


def training_log(name: str) -> str:
    """One line of figures for each logged step of a training."""
    return f"{model(name)}/{TRAINING_LOG}"


def samples(name: str) -> str:
    """A model's replies to learn from."""
    return f"sampled/{name}.jsonl"


def generations(name: str) -> str:
    """A model's replies to the test histories."""
    return f"generations/{name}.jsonl"


def scores(name: str) -> str:
    """What judges, scorer and the model itself say of replies."""
    return f"scores/{name}.jsonl"


def judge(label: str) -> str:
    """A reporting judge."""
    return f"judges/{label}"


def judge_quality(label: str) -> str:
    """How a judge agrees with annotators' labels."""
    return f"{judge(label)}/{QUALITY}"


def study(name: str) -> str:
    """The figures of `flatness`, `durability` or `generalisation`."""
    return f"{REPORT}/{name}.json"


def seed(number: int) -> str:
    """The run with another seed."""
    return f"seeds/{number}"


def generalisation(question: str, source: str) -> str:
    """The run without some of the policy's data."""
    return f"generalisation/{question}_{source}"


def find_run(checkpoint: Path) -> Path | None:
    """The root of the run that a checkpoint is in, which may have been moved; None outside one."""
    here = checkpoint.resolve()
    return next((p for p in (here, *here.parents) if (p / RECIPE).exists()), None)
