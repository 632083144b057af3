"""What a recipe may say of a system, and of the judge in the loop."""

from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, tiny_blenderbot

from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError
from flatgd.methods import GNP, METHODS, SAM, Method
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.training_config import training_config


def with_methods(recipe_file: Path, text: str) -> Any:
    return load_recipe(recipe_file, [f"methods={text}"])


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ("{unlikelihod: {}}", "no such method; did you mean 'unlikelihood'"),
        ("{mine: {method: cringe, wieght: 1}}", "unknown key 'wieght'"),
        ("{cringe: {weight: -1}}", "weight must be a number >= 0, got -1"),
        ("{cringe: {top_k: 1.5}}", "top_k must be a whole number >= 1, got 1.5"),
        ("{safety_loss: {divergence: l2}}", "divergence must be one of js, kl"),
        ("{cringe: {start: toxic_expert}}", "start: toxic_expert must not be used"),
        ("{cringe: {start: later}, later: {method: clean}}", "'later' is not backbone"),
        ("{dexperts: {}, cringe: {start: dexperts}}", "'dexperts' is not backbone"),
        ("{clean: {sampled_from: backbone}}", "clean learns from no toxic replies"),
        ("{cringe: {sampled_from: nobody}}", "'nobody' is not backbone"),
        ("{'a/b': {method: clean}}", "names are up to 100 letters"),
        ("{dexperts: {strength: strong}}", "strength must be a number"),
        ("{cringe: {top_k: .inf}}", "top_k must be a whole number >= 1, got inf"),
        ("{cringe: {weight: .nan}}", "weight must be a number >= 0, got nan"),
        ("{npo: {lm_weight: abc}}", "lm_weight must be a number >= 0, got 'abc'"),
        ("{gnp: {penalty_share: 1}}", "penalty_share is fixed by gnp and cannot be set"),
        ("{sam: {penalise: safety_loss}}", "penalise is fixed by sam and cannot be set"),
        ("{dexperts: {learning_rate: 1}}", "dexperts is not trained and has no learning_rate"),
        ("{director: {}, a: {method: clean, start: director}}", "'director' is not backbone"),
        ("{npo: {beta: 0}}", "beta must be a number > 0, got 0"),
    ],
)
def test_wrong_entries_are_told(recipe_file: Path, methods: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_validated(with_methods(recipe_file, methods))


def test_the_judge_in_the_loop_never_reports(recipe_file: Path, tmp_path: Path) -> None:
    """By whatever path; of no matter where nothing is sampled."""
    tiny_blenderbot().save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    (tmp_path / "link").symlink_to(tmp_path / "judge")
    one, other = (f"{{kind: trained, model: {tmp_path / name}}}" for name in ("judge", "link"))
    both = [f"judges=[{one}]", f"sample.judge={other}"]
    load_validated(load_recipe(recipe_file, both))
    with pytest.raises(RecipeError, match="what trains must not report"):
        load_validated(load_recipe(recipe_file, [*both, "methods={click: {}}"]))


def test_the_judge_in_the_loop_is_checked_too(recipe_file: Path) -> None:
    absent = "sample.judge={kind: trained, model: /nope/nothing}"
    with pytest.raises(RecipeError, match=r"sample\.judge: there is no folder"):
        load_validated(load_recipe(recipe_file, [absent, "methods={click: {}}"]))


def test_sam_is_gnp_with_lambda_rho(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        ["methods={sam: {rho: 0.02}}", "train.penalty_share=0.5", "train.flatness_method=exact"],
    )
    config = training_config(recipe, recipe.overrides("sam"), tmp_path, SAM)
    settings = config.penalty_settings()
    assert settings is not None
    assert (settings.weight, settings.rho, settings.squared) == (0.02, 0.02, False)
    assert (config.penalise, config.flatness_method) == ("objective", "finite_difference")
    assert config.penalty_warmup == 0
    of_train = load_recipe(recipe_file, ["methods={sam: {}}", "train.rho=1e-3"])
    assert training_config(of_train, {}, tmp_path, SAM).rho == 0.05


def test_gnp_s_lambda_is_fixed(recipe_file: Path, tmp_path: Path) -> None:
    """By a share of the gradient it would be flatgd: both penalties point along H u."""
    recipe = load_recipe(recipe_file, ["methods={gnp: {}}", "train.penalty_share=0.5"])
    settings = training_config(recipe, recipe.overrides("gnp"), tmp_path, GNP).penalty_settings()
    assert settings is not None
    assert (settings.weight, settings.share, settings.squared) == (0.08, None, False)


def test_methods_are_built_with_their_own_defaults() -> None:
    for kind in METHODS.values():
        if issubclass(kind, Method) and not kind.needs:
            built = kind.build({}, None, {})
            assert {name: getattr(built, name) for name in kind.fields()} == kind.fields()
