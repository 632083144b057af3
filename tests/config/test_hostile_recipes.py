"""Recipes by accident or malice: each ends with exit code 2 and a line that says what to change."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_blenderbot

from flatgd.cli.main import main
from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.models import trust
from flatgd.models.trust import Risk
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.training_config import training_config

Refusal = Callable[..., str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What the command line says when it refuses these words."""

    def refuse(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["flatgd", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 2, said
        assert "Traceback" not in said.err + said.out
        assert "The traceback is in" not in said.err  # an error that the program expects
        return said.err

    return refuse


OVERRIDES = [
    ("train.learning_rate=-1", "learning_rate must be a number >= 0, got -1"),
    ("train.learning_rate=.nan", "learning_rate must be a number >= 0, got nan"),
    ("train.learning_rate=1e999", "learning_rate must be a number >= 0, got inf"),
    ("train.learning_rate=fast", "learning_rate must be a number >= 0, got 'fast'"),
    ("train.max_steps=2.5", "max_steps must be a whole number >= 1, got 2.5"),
    ("train.max_steps=0", "max_steps must be a whole number >= 1, got 0"),
    ("train.max_steps=-2", "max_steps must be a whole number >= 1, got -2"),
    ("train.num_train_epochs=0", "num_train_epochs must be a number > 0, got 0"),
    ("train.num_train_epochs=-1", "num_train_epochs must be a number > 0, got -1"),
    ("train.penalty_every=.nan", "penalty_every must be a whole number >= 1, got nan"),
    ("train.per_device_train_batch_size=1.5", "must be a whole number >= 1, got 1.5"),
    ("train.per_device_train_batch_size=true", "must be a whole number >= 1, got True"),
    ("train.micro_batch_size=99999999999999999999", "micro_batch_size must be a whole number"),
    ("train.repel_weight=-3", "repel_weight must be a number >= 0, got -3"),
    ("train.max_grad_norm=.inf", "max_grad_norm must be a number >= 0, got inf"),
    ("train.warmup_steps={a: 1}", "warmup_steps must be a number >= 0"),
    ("train.fsdp_config=1", "fsdp_config must be a mapping or text, got 1"),
    ("train.log_level=loud", "log_level must be one of"),
    ("train.parallelism_config=abc", "unknown key 'parallelism_config'"),
    ("train.accelerator_config=/no/such.json", "No such file"),
    ("train.expert_cache=3", "expert_cache must be text, got 3"),
    ("train={1: 2}", "train.1"),
    ("methods={unlikelihood: {weight: -1}}", "weight must be a number >= 0, got -1"),
    ("methods={dexperts: {strength: .inf}}", "strength must be a number >= 0, got inf"),
    ("methods={flatgd: {lm_weight: 0, attract_weight: 0, repel_weight: -3}}", "repel_weight must"),
    ("methods={" + "x" * 300 + ": {method: clean}}", "names are up to 100 letters"),
    ("seed=4294967296", "seed: Input should be less than or equal to 4294967295"),
    ("seed=4294967295", None),
    ("seed=1.5", "seed"),
    ("seed=2020-01-01", "seed"),
    ("seeds=0", "seeds"),
    ("generate.temperature=.nan", "generate.temperature: Input should be a finite number"),
    ("generate.temperature=.inf", "generate.temperature: Input should be a finite number"),
    ("generate.samples=1e9", "generate.samples"),
    ("max_history_tokens=999999999999999999999", "max_history_tokens"),
    ("data.policy.0.share=[.nan, 1]", "data.policy.0.share.0: Input should be a finite number"),
    ("data.policy.0.path=~nouser/x", "there is no home folder ~nouser; write the whole path"),
    ("data.policy.0.path=" + "a" * 300, "the path is too long"),
    ("data.policy.0.path=" + "a/" * 3000, "the path is too long"),
    ("output=~nouser/x", "there is no home folder ~nouser"),
    ('output="a\\0b"', "a value holds a NUL character"),
    ('turn_separator="\\ud800"', "half of a surrogate pair"),
    ("backbone=" + "b" * 300, "the path is too long"),
    ("backbone=~nouser/model", "there is no home folder ~nouser"),
    ("template_date=2025-13-01", "template_date"),
    ("template_date=[1]", "template_date"),
    ("data.policy.²=1", "is none of 0..0"),
    ("seed=!!int abc", "a value is not a valid int"),
    ("seed=!!python/name:os.system x", "tag 'python/name:os.system' is not supported"),
    ("chat_template_kwargs={a: !!set {b}}", "tag 'set' is not supported"),
    ("train.run_name=!!binary aGk=", "tag 'binary' is not supported"),
    ("train={max_steps: 1, max_steps: 2}", "duplicate key 'max_steps'"),
]


@pytest.mark.parametrize(("override", "told"), OVERRIDES)
def test_values_that_cannot_be(
    recipe_file: Path, refusal: Refusal, override: str, told: str
) -> None:
    if told is None:  # the last value of a range
        load_validated(load_recipe(recipe_file, [override]))
        return
    for command in ("check", "run"):
        said = refusal(command, str(recipe_file), "--set", override)
        assert told in said
        assert len(said) < 1000


@pytest.mark.parametrize(
    ("added", "told"),
    [
        (
            "train: {max_steps: 9}\n",
            ":14: not valid YAML: duplicate key 'train'; it is also on line 11",
        ),
        ("seeds: 1\nseeds: 2\n", ":15: not valid YAML: duplicate key 'seeds'"),
        ("seeds: !!float x\n", ":14: not valid YAML: a value is not a valid float"),
        ("seeds: !!bool maybe\n", ":14: not valid YAML: a value is not a valid bool"),
        ("seeds: " + "9" * 5000 + "\n", ":14: not valid YAML: a value is not a valid int"),
        ("? [a]\n: b\n", ":14: not valid YAML: found unhashable key"),
        ('turn_separator: "\\uDC00"\n', ":14: not valid YAML: a value holds"),
        ("when: !!timestamp 2001-01-01\n", ":14: not valid YAML: tag 'timestamp'"),
    ],
)
def test_yaml_that_cannot_be(recipe_file: Path, refusal: Refusal, added: str, told: str) -> None:
    recipe_file.write_text(recipe_file.read_text() + added)
    assert f"{recipe_file}{told}" in refusal("check", str(recipe_file))


def test_paths_of_recipes_that_cannot_be(refusal: Refusal, tmp_path: Path) -> None:
    assert "no such recipe" in refusal("check", str(tmp_path / "none.yaml"))
    assert "cannot be read" in refusal("check", str(tmp_path / ("a" * 300)))
    assert "cannot be written" in refusal("init", str(tmp_path / ("a" * 300)))


def test_a_date_is_text_and_merged_keys_are_no_duplicates(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.run_name=2025-01-02", "template_date=2025-01-02"])
    assert recipe.train["run_name"] == "2025-01-02"
    assert str(recipe.template_date) == "2025-01-02"
    merged = "methods: {a: &a {method: clean, max_steps: 1}, b: {<<: *a, max_steps: 2}}\n"
    recipe_file.write_text(recipe_file.read_text() + merged)
    assert load_recipe(recipe_file).methods["b"] == {"method": "clean", "max_steps": 2}


@pytest.mark.parametrize(
    "field", ["speaker: human", "answered: false", "history_lines: 1", "histories: 2"]
)
def test_two_test_sources_of_one_name_must_agree(recipe_file: Path, field: str) -> None:
    one = "{name: t, format: jsonl, path: test.jsonl}"
    other = f"{{name: t, format: jsonl, path: judge.jsonl, {field}}}"
    told = f"test: two sources named 't' differ in {field.split(':')[0]}; rename one"
    for pair in (f"[{one}, {other}]", f"[{other}, {one}]"):
        with pytest.raises(RecipeError, match=told):
            load_recipe(recipe_file, [f"data.test={pair}"])


# Toxic experts


@pytest.mark.parametrize("where", ["config.json", "flatgd.json"])
@pytest.mark.parametrize(
    "override",
    [
        "backbone={0}",
        "expert_backbone={0}",
        "scorer={0}",
        "judges=[{{kind: hf, model: {0}}}]",
        "judges=[{{kind: trained, model: {0}}}]",
    ],
)
def test_a_toxic_expert_is_no_model_of_a_recipe(
    recipe_file: Path, tmp_path: Path, override: str, where: str
) -> None:
    folder = marked(tmp_path / "toxic", where)
    with pytest.raises(RecipeError, match="is a toxic expert, which must not be used"):
        load_validated(load_recipe(recipe_file, [override.format(folder)]))


def test_an_adapter_on_a_toxic_expert_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    toxic = marked(tmp_path / "toxic", "config.json")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for base, told in ((toxic, "is a toxic expert"), (adapter, "leads back to")):
        (adapter / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(base)})
        )
        with pytest.raises(RecipeError, match=told):
            load_validated(load_recipe(recipe_file, [f"backbone={adapter}"]))


def marked(folder: Path, where: str) -> Path:
    tiny_blenderbot().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    file = folder / where
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, "flatgd_role": "toxic_expert"}))
    return folder


# Sending


@pytest.fixture
def nothing_allowed() -> object:
    trust.forbid()
    yield
    trust.forbid()


@pytest.mark.usefixtures("nothing_allowed")
def test_a_recipe_cannot_send(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config_of(*overrides: str) -> None:
        training_config(load_recipe(recipe_file, list(overrides)), {}, tmp_path)

    with pytest.raises(UnsupportedError, match=r"push_to_hub would upload the model.*--allow send"):
        config_of("train.push_to_hub=true", "train.hub_model_id=a/b")
    for name in ("wandb", "comet_ml", "clearml", "trackio", "neptune", "codecarbon"):
        with pytest.raises(
            UnsupportedError, match=f"{name} cannot be used: it sends.*--allow send"
        ):
            config_of(f"train.report_to=[tensorboard, {name}]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.example")
    with pytest.raises(UnsupportedError, match="mlflow cannot be used: it sends"):
        config_of("train.report_to=mlflow")
    config_of("train.hub_model_id=a/b")  # sends nothing
    trust.allow(Risk.SEND)
    training_config(load_recipe(recipe_file, ["train.push_to_hub=true"]), {}, tmp_path)


@pytest.mark.usefixtures("nothing_allowed")
def test_a_tracker_that_stays_here_is_not_refused_for_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flatgd.pipeline.network_permissions import sending_faults

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not list(sending_faults({"report_to": ["tensorboard", "wandb", "mlflow", "none"]}))
    monkeypatch.setenv("WANDB_MODE", "online")
    assert list(sending_faults({"report_to": "wandb"}))


@pytest.mark.usefixtures("nothing_allowed")
def test_experts_are_never_uploaded(recipe_file: Path) -> None:
    trust.allow(Risk.SEND)
    with pytest.raises(RecipeError, match="push_to_hub would upload the toxic expert"):
        load_validated(load_recipe(recipe_file, ["train.push_to_hub=true"]))


@pytest.mark.parametrize(
    "place",
    [
        "train.hub_token",
        "train.HF_TOKEN",
        "experts.wandb_api_key",
        "methods.flatgd.api_key",
        "train.accelerator_config.my_secret",
        "train.db_password",
    ],
)
def test_a_token_never_comes_from_a_recipe(
    recipe_file: Path, refusal: Refusal, tmp_path: Path, place: str
) -> None:
    for command in ("check", "run", "report"):
        said = refusal(command, str(recipe_file), "--set", f"{place}=hf_verysecret")
        assert f"{place}: a recipe holds no token" in said
        assert "verysecret" not in said
    assert not (tmp_path / "run").exists()
    assert "verysecret" not in refusal(
        "check", str(recipe_file), "--set", f"{place}=[hf_verysecret"
    )


def test_a_field_about_tokens_of_text_is_no_secret(recipe_file: Path) -> None:
    load_recipe(recipe_file, ["train.include_num_input_tokens_seen=true"])
