"""LoRA: a penalty over the adapter alone; plain peft and transformers load it; one base for all."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import training
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama, write_rows
from families import save_family
from peft import AutoPeftModelForSeq2SeqLM, LoraConfig, PeftModel, get_peft_model
from reference import relative_error
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaForCausalLM

from flatgd import FlatGD, FlatGDTrainer, load_model
from flatgd.artifacts import layout
from flatgd.config.loading import load_recipe
from flatgd.errors import ModelError, RecipeError, UnsupportedError
from flatgd.flatness import Objective, PenaltySettings, Split, exact, finite_difference
from flatgd.io.records import read_jsonl
from flatgd.models.adapters import (
    ROLE,
    is_toxic_expert,
    load,
    load_together,
    save,
    share_weights,
    with_adapter,
)
from flatgd.models.heads import reply_log_probs
from flatgd.models.loading import ADAPTER, base_of
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.publish.hub import ModelPackage
from flatgd.run import report
from flatgd.training.totals import totals_of

PARTS = ("policy", "judge", "test")


config = partial(training.config, lora_rank=2)


def trainer(folder: Path, model: nn.Module, method: FlatGD, **fields) -> FlatGDTrainer:  # type: ignore[no-untyped-def]
    return FlatGDTrainer(
        model,
        config(folder, **fields),
        train_dataset=mild_rows(16, seed=5),
        processing_class=byte_tokenizer(),
        method=method,
    )


def adapted(folder: Path, seed: int, base: Path) -> Path:
    """An adapter with something in it."""
    model = with_adapter(load_model(base), config(folder, seed=seed))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    save(model, folder)
    return folder


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast", "exact"])
def test_only_the_adapter_is_trained(tmp_path: Path, make, flatness_method: str) -> None:  # type: ignore[no-untyped-def]
    model = with_adapter(make(0), config(tmp_path))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    subject = trainer(tmp_path, model, FlatGD(make(1), make(2)), flatness_method=flatness_method)
    subject.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert subject.state.log_history[0]["safety_grad_norm"] > 0


def test_penalty_is_that_of_the_adapters_weights(tmp_path: Path) -> None:
    """Finite differences over the adapter against double backward over it, in float64."""
    model = with_adapter(tiny_blenderbot(), config(tmp_path)).double()
    with torch.no_grad():  # away from B = 0, where half of the gradient is nothing
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    method = FlatGD(tiny_blenderbot(1).double(), tiny_blenderbot(2).double())
    subject = trainer(tmp_path, model, method)
    batch = subject.data_collator(subject.examples[:8])
    totals = totals_of(batch, subject.accelerator)
    (part,) = method.prepare([batch])
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = {}
    for way in ("exact", "differences"):
        function = exact if way == "exact" else finite_difference
        settings = PenaltySettings(10.0, None, difference="central", rho=1e-4)
        score = method.terms if way == "exact" else method.fused
        objective = Objective(lambda _, score=score: score(model, part, totals).terms)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found[way] = function(parameters, objective, Split([0]), lambda g: None, settings)
    assert relative_error(found["differences"].gradient, found["exact"].gradient) < 1e-5


def test_plain_peft_and_plain_transformers_load_it(tmp_path: Path, backbone_folder: Path) -> None:
    folder = adapted(tmp_path / "a", 1, backbone_folder)
    ours = load(folder).eval()
    peft = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).eval()
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    merged = peft.merge_and_unload()
    ids = torch.tensor([[5, 6, 7, 2]])
    feed = {"input_ids": ids, "decoder_input_ids": ids}
    for other in (plain, merged):
        assert torch.allclose(ours(**feed).logits, other(**feed).logits, atol=1e-5)
    assert not torch.allclose(ours(**feed).logits, load_model(backbone_folder)(**feed).logits)
    merged.save_pretrained(tmp_path / "merged")
    assert base_of(tmp_path / "merged") is None
    assert torch.allclose(load(tmp_path / "merged")(**feed).logits, ours(**feed).logits, atol=1e-5)


def test_an_adapter_on_an_adapter(tmp_path: Path, backbone_folder: Path) -> None:
    first = adapted(tmp_path / "first", 1, backbone_folder)
    model = with_adapter(load(first), config(tmp_path))
    save(model, tmp_path / "second")
    assert base_of(tmp_path / "second") == str(first)
    ids = torch.tensor([[5, 6, 7, 2]])
    feed = {"input_ids": ids, "decoder_input_ids": ids}
    wanted = load(first).eval()(**feed).logits
    assert torch.allclose(load(tmp_path / "second").eval()(**feed).logits, wanted, atol=1e-5)


def test_three_models_share_one_base(tmp_path: Path, backbone_folder: Path) -> None:
    paths = {n: str(adapted(tmp_path / n, s, backbone_folder)) for s, n in enumerate("ab", start=1)}
    base = load_model(backbone_folder)
    experts = load_together(paths, base)
    policy = with_adapter(base, config(tmp_path))
    tensors = {id(t): t.numel() for m in (policy, *experts.values()) for t in m.parameters()}
    adapters = sum(
        p.numel()
        for m in (policy, *experts.values())
        for n, p in m.named_parameters()
        if "lora" in n
    )
    assert sum(tensors.values()) == load_model(backbone_folder).num_parameters() + adapters
    assert adapters > 0
    FlatGD(experts["a"], experts["b"])  # freezes the experts, not the policy's adapter
    assert any(p.requires_grad for p in policy.parameters())


def test_shared_experts_say_what_they_say_alone(tmp_path: Path, backbone_folder: Path) -> None:
    paths = {n: str(adapted(tmp_path / n, s, backbone_folder)) for s, n in enumerate("ab", start=1)}
    shared = load_together(paths, load_model(backbone_folder))
    subject = trainer(
        tmp_path,
        load_model(backbone_folder),
        FlatGD(**{"clean_expert": shared["a"].eval(), "toxic_expert": shared["b"].eval()}),
        lora_rank=0,
    )
    batch = subject.data_collator(subject.examples[:4])
    with torch.no_grad():
        for name, path in paths.items():
            alone = reply_log_probs(load(path).eval(), batch)
            assert torch.allclose(reply_log_probs(shared[name].eval(), batch), alone, atol=1e-5)


def test_a_copy_has_modules_of_its_own_on_the_same_tensors() -> None:
    model = tiny_blenderbot()
    other = share_weights(model)
    assert other is not model
    assert other.lm_head is not model.lm_head
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_recipe_with_adapters_everywhere(recipe_file: Path) -> None:
    """Experts, policies and the way of decoding; the toxic one stays marked."""
    lora = [
        "train.lora_rank=2",
        "train.snapshots=1",
        "methods={clean: {}, flatgd: {}, dexperts: {}}",
    ]
    job = Pipeline(load_recipe(recipe_file, lora))
    job.run()
    report(job)
    for place in ("experts/clean", "experts/toxic", "methods/clean", "methods/flatgd"):
        assert (job.context.root / place / ADAPTER).is_file()
        assert not (job.context.root / place / "model.safetensors").exists()
    assert is_toxic_expert(job.context.root / "experts/toxic")
    assert "never" in load(job.context.root / "experts/toxic").config.flatgd_role  # also merged
    assert not is_toxic_expert(job.context.root / "methods/flatgd")
    assert (job.context.root / "methods/flatgd/path").is_dir()
    again = Pipeline(load_recipe(recipe_file, lora))
    assert again.context.plan.fingerprint("flatgd") == again.context.store.fingerprint(
        "methods/flatgd"
    )


def test_two_trainings_of_an_adapter_are_one(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        torch.manual_seed(hash(folder) % 1000)  # what was drawn before does not matter
        trainer(
            folder,
            with_adapter(tiny_blenderbot(), config(folder)),
            FlatGD(tiny_blenderbot(1), tiny_blenderbot(2)),
        ).train()
    one, two = (with_adapter(tiny_blenderbot(), config(f)).state_dict() for f in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_impossible_targets_are_refused(tmp_path: Path, backbone_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="lora_rank must be a whole number >= 0, got -1"):
        config(tmp_path, lora_rank=-1)
    with pytest.raises(ModelError, match="lora_targets"):
        with_adapter(tiny_blenderbot(), config(tmp_path, lora_targets=["nowhere"]))
    folder = adapted(tmp_path / "a", 1, backbone_folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="configuration but no weights"):
        load(folder)
    (folder / ADAPTER).write_text("{")
    with pytest.raises(ModelError, match="not an adapter's configuration"):
        load(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.slow
def test_the_causal_recipe_on_small_shapes(tmp_path: Path, family: str) -> None:
    """recipes/causal_lora.yaml as it stands, names of models and data replaced: bf16, checkpoints
    of activations, chat template, fast; three models on one base."""
    model = str(save_family(family, tmp_path / "model"))
    for seed, part in enumerate(("policy", "judge", "test")):
        write_rows(tmp_path / f"{part}.jsonl", mild_rows(24, seed))
    recipe = Path(__file__).parents[2] / "recipes/causal_lora.yaml"
    sets = [f"data.{p}=[{{name: {p}, format: jsonl, path: {tmp_path}/{p}.jsonl}}]" for p in PARTS]
    job = Pipeline(
        load_recipe(
            recipe,
            [
                f"output={tmp_path}/run",
                f"backbone={model}",
                f"scorer={model}",
                "max_history_tokens=96",
                "generate={histories: 4, samples: 2, max_new_tokens: 6}",
                "train.per_device_train_batch_size=8",
                "report.resamples=100",
                *sets,
            ],
        )
    )
    job.run()
    report(job)
    assert (job.context.root / "report/index.html").exists()
    plain = AutoModelForCausalLM.from_pretrained(job.context.root / "methods/flatgd")
    assert any("lora_" in name for name, _ in plain.named_parameters())
    log = list(read_jsonl(job.context.root / "methods/flatgd/training.jsonl"))
    assert any(entry.get("flatness_weight", 0) > 0 for entry in log)


LORA = {"target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose head is its embedding, as those of Llama 3.2 and Qwen are."""
    folder = tmp_path_factory.mktemp("tied")
    config = tiny_llama().config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "lm_head"], ["embed_tokens"], r".*\.(q_proj|embed_tokens)", "lm_head"],
)
def test_an_adapter_on_a_tied_weight_is_refused(
    tied_folder: Path, tmp_path: Path, targets: object
) -> None:
    with pytest.raises(ModelError, match=r"which shares its weight with .* from lora_targets"):
        with_adapter(load_model(tied_folder), config(tmp_path, lora_targets=targets))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_what_is_trained_beside_tied_weights_is_what_is_loaded(
    tied_folder: Path, tmp_path: Path, targets: object
) -> None:
    model = with_adapter(load_model(tied_folder), config(tmp_path, lora_targets=targets))
    trainer(tmp_path, model, FlatGD(tiny_llama(1), tiny_llama(2))).train()
    save(model, tmp_path)
    ids = torch.tensor([[1, 80, 90, 100]])
    trained = model.eval()(ids).logits
    assert torch.allclose(load(tmp_path).eval()(ids).logits, trained, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {**LORA, "modules_to_save": ["lm_head"]},
        {**LORA, "modules_to_save": ["embed_tokens"]},
        {**LORA, "target_parameters": ["lm_head.weight"]},
        {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_users_own_adapter_on_a_tied_weight_is_refused(
    tied_folder: Path, tmp_path: Path, fields: dict
) -> None:
    """By the trainer, and where its folder is to be merged."""
    model = get_peft_model(load_model(tied_folder), LoraConfig(r=2, **fields))
    method = FlatGD(tiny_llama(1), tiny_llama(2))
    with pytest.raises(ModelError, match="which shares its weight with"):
        trainer(tmp_path, model, method)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"cannot be merged into its base|cannot load"):
        load(tmp_path)


def test_a_users_own_adapter_on_a_head_of_its_own_trains(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["lm_head"], modules_to_save=["embed_tokens"])
    model = get_peft_model(tiny_llama(), lora)
    trainer(tmp_path, model, FlatGD(tiny_llama(1), tiny_llama(2))).train()


def test_an_adapter_that_is_not_trainable_is_refused(tmp_path: Path, backbone_folder: Path) -> None:
    folder = adapted(tmp_path / "a", 1, backbone_folder)
    frozen = PeftModel.from_pretrained(load_model(backbone_folder), str(folder))
    method = FlatGD(tiny_blenderbot(1), tiny_blenderbot(2))
    with pytest.raises(
        UnsupportedError, match=r"no weight of the model requires a gradient.*is_trainable=True"
    ):
        trainer(tmp_path, frozen, method)
    with pytest.raises(
        UnsupportedError, match=r"no weight of the model requires a gradient.*set requires_grad"
    ):
        trainer(tmp_path, tiny_blenderbot().requires_grad_(False), method, lora_rank=0)


def test_check_finds_adapters_that_cannot_be(recipe_file: Path, tied_folder: Path) -> None:
    """Before weights load; each fault once."""
    sets = [f"backbone={tied_folder}", "train.lora_rank=2", "train.lora_targets=[nowhere]"]
    with pytest.raises(RecipeError, match=r"(?s)^experts: lora_targets \['nowhere'\]") as told:
        load_validated(load_recipe(recipe_file, sets))
    assert str(told.value).count("lora_targets") == 1
    sets[-1] = "methods={clean: {lora_targets: [lm_head]}}"
    with pytest.raises(RecipeError, match="clean: the adapter is on lm_head"):
        load_validated(load_recipe(recipe_file, sets))


@pytest.mark.parametrize("written", ["base", "./base", "../work/base"])
def test_a_base_by_a_relative_path_is_found_from_any_folder(
    tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    shutil.copytree(backbone_folder, tmp_path / "work/base")
    monkeypatch.chdir(tmp_path / "work")
    adapted(Path("adapter"), 1, Path(written))
    monkeypatch.chdir(tmp_path)
    load(Path("work/adapter"))
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "work/adapter")  # plain transformers
    load_together({"one": "work/adapter"})


def test_a_recipe_gives_its_backbones_whole_path(
    recipe_file: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(backbone_folder, recipe_file.parent / "base")
    monkeypatch.chdir(recipe_file.parent)
    recipe = load_recipe(recipe_file.name, ["backbone=base"])
    assert recipe.backbone == str(recipe_file.parent / "base")


def test_an_adapter_and_its_base_are_moved_together(tmp_path: Path, backbone_folder: Path) -> None:
    shutil.copytree(backbone_folder, tmp_path / "old/base")
    model = adapted(tmp_path / "old/run/adapter", 1, tmp_path / "old/base")
    wanted = load(model).state_dict()
    (tmp_path / "old").rename(tmp_path / "new")
    found = load(tmp_path / "new/run/adapter").state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    (tmp_path / "new/base").rename(tmp_path / "new/elsewhere")
    with pytest.raises(
        ModelError, match=r"its base .*old/base does not exist; restore it, or write"
    ):
        load(tmp_path / "new/run/adapter")


def test_a_toxic_adapters_mark_leaves_its_settings(tmp_path: Path, backbone_folder: Path) -> None:
    settings = tmp_path / layout.SETTINGS
    settings.write_text('{"seed": 1}')
    model = with_adapter(load_model(backbone_folder), config(tmp_path))
    model.config.flatgd_role = "toxic expert"
    save(model, tmp_path)
    assert json.loads((tmp_path / ROLE).read_text()) == {"flatgd_role": "toxic expert"}
    assert settings.read_text() == '{"seed": 1}'


def test_an_adapter_on_a_folder_is_published_merged_alone(recipe_file: Path) -> None:
    """Its configuration would tell this machine's folders, and others could not load it."""
    sets = ["train.lora_rank=2", "methods={clean: {}}"]
    job = Pipeline(load_recipe(recipe_file, sets))
    job.run()
    report(job)
    parcel = ModelPackage(job.context.recipe, "clean", "me/x")
    for publish in (parcel.push, lambda: parcel.pack(recipe_file.parent / "bot")):
        with pytest.raises(UnsupportedError, match="an adapter whose base is a local folder"):
            publish()
    packed = parcel.pack(recipe_file.parent / "bot", merged=True)
    for path in packed.glob("*.json"):
        assert str(recipe_file.parent) not in path.read_text(), path
        assert job.context.recipe.backbone not in path.read_text(), path
    (job.context.root / "methods/clean" / ADAPTER).write_text(
        json.dumps({"base_model_name_or_path": "some/model", "peft_type": "LORA"})
    )
    (job.context.root / "methods/clean/base_from_here.txt").unlink()
    assert "adapter_model.safetensors" in {path.name for path in parcel.files}
