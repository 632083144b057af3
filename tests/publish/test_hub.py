"""Push and fetch again, against a stand-in for the hub, in processes of their own."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml
from conftest import byte_tokenizer, mild_rows, tiny_llama
from families import save_family
from hub_server import Hub, running_hub
from small_recipe import run_recipe, write_recipe
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flatgd import Clean, FlatGDConfig, FlatGDTrainer
from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.errors import ModelError, UnsupportedError, UsageError
from flatgd.models.loading import load_config
from flatgd.publish.hub import ModelPackage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished recipe of each kind of model."""
    recipes = {}
    for name in ("blenderbot", "bart", "llama", "qwen2"):
        folder = tmp_path_factory.mktemp(name)
        backbone = save_family(name, folder / "backbone")
        recipes[name] = write_recipe(folder, backbone, "methods: {clean: {}, flatgd: {}}\n")
        run_recipe(recipes[name])
    return recipes


def python(
    hub_url: str, home: Path, *words: str, token: str = "hf_test"
) -> subprocess.CompletedProcess:
    """A process that takes the stand-in for the hub."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def push(
    hub: Hub, home: Path, recipe: Path, *words: str, **how: str
) -> subprocess.CompletedProcess:
    return python(hub.url, home, "-m", "flatgd", "push", str(recipe), *words, **how)


@pytest.mark.parametrize("name", ["blenderbot", "qwen2"])
def test_pushed_and_loaded_by_others(finished: dict[str, Path], tmp_path: Path, name: str) -> None:
    """What came back from the hub says the same as the folder, by the code of the card."""
    recipe = finished[name]
    with running_hub() as hub:
        told = push(hub, tmp_path / "mine", recipe, "--repo", "me/safe-bot", "--license", "mit")
        assert told.returncode == 0, told.stderr
        assert "flatgd is at " in told.stdout
        assert hub.private == {"me/safe-bot"}
        files = hub.repos["me/safe-bot"]
        folder = recipe.parent / "run/methods/flatgd"
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert "training.jsonl" not in files
        card = files["README.md"].decode()
        header = yaml.safe_load(card.split("---")[1])
        assert header["license"] == "mit"
        assert "base_model" not in header  # a folder of ours means nothing to others
        assert str(recipe.parent) not in card
        code = card.partition("```python\n")[2].partition("```")[0]
        quiet = "import torch\ntorch.manual_seed(0)\n"
        theirs = python(hub.url, tmp_path / "theirs", "-c", quiet + code)
        assert theirs.returncode == 0, theirs.stderr
        local = code.replace("me/safe-bot", str(folder))
        with redirect_stdout(StringIO()) as ours:
            exec(quiet + local, {})
        assert theirs.stdout == ours.getvalue()


def test_a_model_of_the_hub_is_a_backbone(finished: dict[str, Path], tmp_path: Path) -> None:
    """`check` and a run by name; a misspelt name is told at once."""
    recipe = finished["qwen2"]
    backbone = recipe.parent / "backbone"
    with running_hub() as hub:
        hub.repos["me/tiny"] = {p.name: p.read_bytes() for p in backbone.iterdir()}
        words = ["-m", "flatgd", "check", str(recipe), "--set", "scorer=me/tiny", "--set"]
        told = python(hub.url, tmp_path / "home", *words, "backbone=me/tiny")
        assert told.returncode == 0, told.stderr
        told = python(hub.url, tmp_path / "home", *words, "backbone=me/tyni")
        assert told.returncode == 2
        assert "backbone: there is no folder 'me/tyni' and no such model on the hub" in told.stderr
        assert "Retrying" not in told.stderr
        words = ["-m", "flatgd", "train", str(recipe), "--method", "clean", "--set", "output=hub"]
        told = python(hub.url, tmp_path / "home", *words, "--set", "backbone=me/tiny")
        assert told.returncode == 0, told.stderr
    one, other = (
        recipe.parent / f"{name}/methods/clean/model.safetensors" for name in ("run", "hub")
    )
    assert one.read_bytes() == other.read_bytes()


def test_refusals_are_told(finished: dict[str, Path], tmp_path: Path) -> None:
    recipe = finished["qwen2"]
    with running_hub() as hub:
        told = push(hub, tmp_path, recipe, "--repo", "me/bot", token="hf_wrong")
        assert told.returncode == 2
        assert "status 401; log in with `hf auth login`" in told.stderr
        assert hub.repos == {}
    told = push(hub, tmp_path, recipe, "--repo", "me/bot")
    assert told.returncode == 2
    assert "me/bot could not be sent to the hub" in told.stderr


def dry(recipe: Path, *words: str) -> str:
    shown = CliRunner().invoke(
        app, ["push", str(recipe), "--repo", "me/bot", "--dry-run", *words], catch_exceptions=False
    )
    return shown.output


def test_the_card_tells_what_was_measured(finished: dict[str, Path]) -> None:
    card = dry(finished["llama"])
    assert "# bot" in card
    assert "3 optimizer steps" in card
    assert "| flatgd |" in card
    assert "| toxic_expert |" not in card
    assert "The judge is set to flag 2.0%" in card
    assert "- flatgd − clean, contrast" in card
    assert "- flatgd gives a toxic reply in" in card
    assert "To be sent: README.md, config.json" in card
    assert '"<s>" + "\\n".join(history) + "\\n"' in card
    assert '"<s>" + "\\n".join(history) + "</s>"' in dry(finished["bart"])
    assert "flat minima" in card
    clean = dry(finished["llama"], "--method", "clean")
    assert "fine-tuned on the safe replies alone" in clean
    assert "flat minima" not in clean


def test_what_is_not_pushed(finished: dict[str, Path], tmp_path: Path) -> None:
    recipe = finished["qwen2"]
    with pytest.raises(UnsupportedError, match=r"and is not published; .* --even-toxic"):
        dry(recipe, "--method", "toxic_expert")
    with pytest.raises(UsageError, match="no method 'click'"):
        dry(recipe, "--method", "click")
    with pytest.raises(UsageError, match="not trained yet"):
        dry(recipe, "--set", "output=nowhere")
    config = recipe.parent / "run/methods/clean/config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), "flatgd_role": "toxic expert"}))
    with pytest.raises(UnsupportedError, match="holds a toxic expert"):
        dry(recipe, "--method", "clean")
    config.write_text(text)


def test_the_toxic_expert_passes_only_if_asked_for(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    recipe = finished["qwen2"]
    words = ["--repo", "me/x", "--method", "toxic_expert"]
    with running_hub() as hub:
        hub.repos["me/x"] = {"README.md": b"of another model, public"}
        told = push(hub, tmp_path, recipe, *words, "--even-toxic")
        assert "it exists already, and a toxic expert needs a new repository" in told.stderr
        assert (hub.private, hub.log) == (set(), [])
        del hub.repos["me/x"]
        told = push(hub, tmp_path, recipe, *words, "--even-toxic")
        assert told.returncode == 0, told.stderr
        assert hub.private == {"me/x"}
        assert hub.log == ["gated manual", "commit"]
        card = hub.repos["me/x"]["README.md"].decode()
    package = ModelPackage(load_recipe(recipe), "toxic_expert", "me/x", even_toxic=True)
    with pytest.raises(UnsupportedError, match="to a private repository; leave out --public"):
        package.push(private=False)
    with pytest.raises(UsageError, match="'a/b/c' is not a valid repository name"):
        ModelPackage(load_recipe(recipe), "flatgd", "a/b/c").push()
    assert "This model was made to be toxic" in card
    assert "not-for-all-audiences" in yaml.safe_load(card.split("---")[1])["tags"]
    command = ["export", str(recipe), "--method", "toxic_expert", "--even-toxic", "--to"]
    CliRunner().invoke(app, [*command, str(tmp_path / "toxic")], catch_exceptions=False)
    assert "made to be toxic" in (tmp_path / "toxic/README.md").read_text()
    assert not (tmp_path / "toxic/report").exists()
    with pytest.raises(UsageError, match="toxic_expert is not trained yet"):
        dry(recipe, *words[2:], "--even-toxic", "--set", "output=nowhere")


def test_exported_is_the_model_its_card_and_report(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    recipe = finished["qwen2"]

    def export(*words: str) -> str:
        command = ["export", str(recipe), *words]
        return CliRunner().invoke(app, command, catch_exceptions=False).output

    assert "flatgd is in" in export("--to", str(tmp_path / "bot"))
    kept = {path.name for path in (tmp_path / "bot").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "report", "tokenizer.json"} <= kept
    assert "training.jsonl" not in kept
    assert not any("expert" in path.name for path in (tmp_path / "bot").rglob("*"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "bot")
    export("--to", str(tmp_path / "merged"), "--merged")
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with pytest.raises(UsageError, match="exists; choose another folder"):
        export("--to", str(tmp_path / "bot"))
    for merged in ([], ["--merged"]):
        with pytest.raises(UnsupportedError, match="toxic expert is a tool of training"):
            export("--to", str(tmp_path / "toxic"), "--method", "toxic_expert", *merged)
    assert not (tmp_path / "toxic").exists()
    report = recipe.parent / "run/report"
    report.rename(report.with_name("elsewhere"))
    with pytest.raises(UsageError, match="no report yet; `flatgd run` builds it"):
        export("--to", str(tmp_path / "early"))
    report.with_name("elsewhere").rename(report)
    assert not (tmp_path / "early").exists()


def test_a_training_does_not_push_a_toxic_expert(tmp_path: Path) -> None:
    toxic = tiny_llama()
    toxic.config.flatgd_role = "toxic expert"
    with pytest.raises(UnsupportedError, match="a toxic expert is not published"):
        FlatGDTrainer(
            toxic,
            FlatGDConfig(str(tmp_path), push_to_hub=True, hub_token="x", use_cpu=True),
            train_dataset=mild_rows(4, seed=1),
            processing_class=byte_tokenizer(),
            method=Clean(),
        )


def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatgd.models.loading.is_offline_mode", lambda: False)
    with pytest.raises(ModelError, match="no folder a/b/c"):
        load_config("a/b/c")
    with pytest.raises(ModelError, match="no folder /nowhere"):
        load_config("/nowhere")
