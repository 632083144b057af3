"""A trained model for others: its files and a model card, in a folder or on the hub."""

import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from flatgd.artifacts import layout
from flatgd.artifacts.reader import verify
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import without_paths
from flatgd.config.recipe import Recipe
from flatgd.errors import ModelError, UnsupportedError, UsageError
from flatgd.io.files import atomic_folder
from flatgd.methods import METHODS
from flatgd.models.adapters import is_toxic_expert, load
from flatgd.models.dialogue_format import Causal, format_for
from flatgd.models.encoding import DialogueFormat
from flatgd.models.loading import base_of, load_config, load_tokenizer
from flatgd.publish.card import model_card, toxic_card

HTTP_HINTS = {
    401: "log in with `hf auth login`",
    403: "log in with `hf auth login`",
    409: "it exists already, and a toxic expert needs a new repository; choose another name",
}
CONFIGS = (
    *(layout.SETTINGS, "config.json", "adapter_config.json", "generation_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)


class ModelPackage:
    """A method's checkpoint and its card, ready to be packed or pushed.

    The toxic expert is accepted only with `even_toxic`; on the hub it is private and gated. Raises
    UsageError for a method without a checkpoint, UnsupportedError for one that is not published.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: str,
        repo: str,
        license_: str | None = None,
        even_toxic: bool = False,
    ):
        self.repo, self.recipe, self.artifact = repo, recipe, layout.model(method)
        self.folder = _folder(recipe, method, even_toxic)
        verify(recipe, [self.artifact])
        self.is_toxic = method == "toxic_expert"
        self.report = None if self.is_toxic else recipe.output / layout.REPORT
        self.card = (
            toxic_card(recipe, repo, license_)
            if self.is_toxic
            else self._card(recipe, method, license_)
        )

    @property
    def files(self) -> list[Path]:
        """The checkpoint's files. Raises UnsupportedError for an adapter on a local base: others
        cannot load it, and its configuration names this machine's folders."""
        base = base_of(self.folder)
        if base is not None and Path(base).is_dir():
            raise UnsupportedError(
                f"{self.folder} is an adapter whose base is a local folder, which others do not "
                "have. Pack it as whole weights with `flatgd export --merged`, or train it on a "
                "backbone from the hub."
            )
        return sorted(p for p in self.folder.iterdir() if p.suffix in layout.MODEL_FILES)

    def _card(self, recipe: Recipe, method: str, license_: str | None) -> str:
        tokenizer = load_tokenizer(str(self.folder))
        dialogue_format = format_for(load_config(str(self.folder)), tokenizer, *recipe.layout)
        tag = "text-generation" if isinstance(dialogue_format, Causal) else "text2text-generation"
        summary = METHODS[recipe.kind_of(method)].summary
        code = usage(dialogue_format, self.repo)
        return model_card(recipe, method, self.repo, summary, code, tag, license_)

    def push(self, private: bool = True) -> str:
        """Send everything in one commit; creates the repository if it does not exist. Returns its
        address."""
        if self.is_toxic and not private:
            raise UnsupportedError(
                "a toxic expert can only be pushed to a private repository; leave out --public"
            )
        files = self.files
        verify(self.recipe, [self.artifact], weights=True)
        operations = [CommitOperationAdd(path.name, _shareable(path)) for path in files]
        operations.append(CommitOperationAdd(layout.CARD, self.card.encode()))
        api = HfApi()
        try:
            address = api.create_repo(self.repo, private=private, exist_ok=not self.is_toxic)
            if self.is_toxic:  # before there is anything in it
                api.update_repo_settings(self.repo, private=True, gated="manual")
            api.create_commit(self.repo, operations, commit_message="A model trained with flatgd")
        except HFValidationError as error:
            raise UsageError(f"{self.repo!r} is not a valid repository name: {error}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            hint = HTTP_HINTS.get(status, "try again later")
            raise ModelError(f"the hub refuses {self.repo}: status {status}; {hint}") from None
        except Exception as error:  # of whichever HTTP client the hub's library uses
            raise ModelError(f"{self.repo} could not be sent to the hub: {error}") from None
        return str(address)

    def pack(self, target: Path, merged: bool = False) -> Path:
        """Write the checkpoint, its card and the report into a new folder. `merged` writes an
        adapter as whole weights. Raises UsageError for a target that exists."""
        if target.exists():
            raise UsageError(f"{target} exists; choose another folder with --to")
        if self.report and not self.report.is_dir():
            raise UsageError("no report yet; `flatgd run` builds it")
        files = [] if merged else self.files
        needed = ArtifactStore(self.recipe.output).needed_by(self.artifact)
        verify(self.recipe, needed if merged else [self.artifact], weights=True)
        with atomic_folder(target) as beside:
            if merged:
                load(self.folder).save_pretrained(beside)
                load_tokenizer(str(self.folder)).save_pretrained(beside)
                files = [path for path in beside.iterdir() if path.name in CONFIGS]
            for path in files:
                _write(_shareable(path), beside / path.name)
            (beside / layout.CARD).write_text(self.card)
            if self.report:
                shutil.copytree(self.report, beside / layout.REPORT)
        return target


def write_cards(recipe: Recipe) -> None:
    """Write the card that a push would send as README.md beside each method's checkpoint."""
    for method in recipe.methods:
        if METHODS[recipe.kind_of(method)].needs_guide or recipe.checkpoint_of(method):
            continue
        folder = recipe.output / layout.model(method)
        (folder / layout.CARD).unlink(missing_ok=True)  # it may be a link to a duplicate's
        ModelCard(ModelPackage(recipe, method, f"{recipe.name}-{method}").card).save(
            folder / layout.CARD
        )


def _folder(recipe: Recipe, method: str, even_toxic: bool) -> Path:
    """The finished checkpoint of a method; of the toxic expert only with `even_toxic`."""
    if method == "toxic_expert":
        folder = recipe.output / layout.model(method)
        if not even_toxic:
            raise UnsupportedError(
                "the toxic expert is a tool of training and is not published; to share it with "
                "other researchers, add --even-toxic"
            )
        if not folder.is_dir():
            raise UsageError("toxic_expert is not trained yet; `flatgd run` trains it")
        return folder
    if method not in recipe.methods:
        raise UsageError(f"no method {method!r} in this recipe; it has {', '.join(recipe.methods)}")
    if METHODS[recipe.kind_of(method)].needs_guide:
        raise UnsupportedError(
            f"{method} needs its guide at decoding time, and a model repository cannot hold one; "
            "publish another method"
        )
    if checkpoint := recipe.checkpoint_of(method):
        raise UnsupportedError(
            f"{method} is {checkpoint}, which flatgd did not train; publish it where it was trained"
        )
    folder = recipe.output / layout.model(method)
    if not folder.is_dir():
        raise UsageError(f"{method} is not trained yet; `flatgd run` trains it")
    if is_toxic_expert(folder):
        raise UnsupportedError(f"{folder} holds a toxic expert, which is not published")
    return folder


def _shareable(path: Path) -> Path | bytes:
    """A file of a checkpoint for others: configurations without local paths."""
    if path.name not in CONFIGS:
        return path
    values = json.loads(path.read_bytes())
    shared = without_paths(values)
    return path if shared == values else (json.dumps(shared, indent=2) + "\n").encode()


def _write(content: Path | bytes, target: Path) -> None:
    if isinstance(content, bytes):
        target.write_bytes(content)
    elif content != target:
        shutil.copy2(content, target)


def usage(dialogue_format: DialogueFormat, name: str) -> str:
    """Code that generates a reply to a history with the layout of turns that the model was trained
    on."""
    auto = (
        "AutoModelForCausalLM" if isinstance(dialogue_format, Causal) else "AutoModelForSeq2SeqLM"
    )
    lines = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = {auto}.from_pretrained("{name}")',
        'history = ["Hi!", "Hello, how are you?", "Fine. What do you like to do?"]',
        *(
            _chat_lines(dialogue_format)
            if isinstance(dialogue_format, Causal) and dialogue_format.chat
            else _plain_lines(dialogue_format)
        ),
        "reply = model.generate(",
        "    **inputs, do_sample=True, top_p=0.9, max_new_tokens=32, "
        f"eos_token_id={dialogue_format.end}",
        ")",
        f"print(tokenizer.decode(reply[0]{_start(dialogue_format)}, skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"


def _chat_lines(dialogue_format: Causal) -> list[str]:
    kwargs = "".join(
        f"    {name}={value!r},\n" for name, value in dialogue_format.template_kwargs.items()
    )
    return [
        'roles = ("user", "assistant")',
        'messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(history)]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True,',
        *kwargs.splitlines(),
        ")",
    ]


def _plain_lines(dialogue_format: DialogueFormat) -> list[str]:
    prefix, suffix = (
        dialogue_format.tokenizer.decode(list(ids))
        for ids in (dialogue_format.prefix, dialogue_format.suffix)
    )
    joined = f"{json.dumps(dialogue_format.separator)}.join(history)"
    closing = dialogue_format.separator if isinstance(dialogue_format, Causal) else suffix
    parts = [json.dumps(prefix)] if prefix else []
    parts += [joined] + ([json.dumps(closing)] if closing else [])
    return [
        f"text = {' + '.join(parts)}",
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
    ]


def _start(dialogue_format: DialogueFormat) -> str:
    return '[inputs["input_ids"].shape[1] :]' if isinstance(dialogue_format, Causal) else ""
