"""A trained model given away: its files and a model card, to a folder or to the hub."""

import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from flatgd.artifacts import layout
from flatgd.artifacts.reader import trained_with
from flatgd.config.recipe import Recipe
from flatgd.errors import ModelError, RecipeError, UnsupportedError
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
    409: "it is there already, and a toxic expert goes to a repository of its own; name another",
}


class ModelPackage:
    """What a push sends: a method's checkpoint and its card.

    The toxic expert is one only with `even_toxic`; on the hub it is private, and gated.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: str,
        repo: str,
        license_: str | None = None,
        even_toxic: bool = False,
    ):
        self.repo = repo
        self.folder = _folder(recipe, method, even_toxic)
        self.is_toxic = method == "toxic_expert"
        self.report = None if self.is_toxic else recipe.output / layout.REPORT
        self.card = (
            toxic_card(recipe, repo, license_)
            if self.is_toxic
            else self._card(recipe, method, license_)
        )

    @property
    def files(self) -> list[Path]:
        """The checkpoint's files. Raises UnsupportedError for an adapter that only this machine can
        load, and whose configuration tells this machine's folders."""
        base = base_of(self.folder)
        if base is not None and Path(base).is_dir():
            raise UnsupportedError(
                f"{self.folder} is an adapter whose base is a folder here, which others do not "
                "have; `flatgd export --merged` packs it as whole weights, and an adapter trained "
                "on a backbone named as on the hub can be published as it is"
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
        """Send all in one commit, making the repository if need be; returns its address."""
        if self.is_toxic and not private:
            raise UnsupportedError(
                "a toxic expert is sent to a private repository; leave out --public"
            )
        operations = [CommitOperationAdd(path.name, path) for path in self.files]
        operations.append(CommitOperationAdd(layout.CARD, self.card.encode()))
        api = HfApi()
        try:
            made = api.create_repo(self.repo, private=private, exist_ok=not self.is_toxic)
            if self.is_toxic:  # before there is anything in it
                api.update_repo_settings(self.repo, private=True, gated="manual")
            api.create_commit(self.repo, operations, commit_message="A model trained with flatgd")
        except HFValidationError as error:
            raise ModelError(f"{self.repo!r} is no name for a repository: {error}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            mend = HTTP_HINTS.get(status, "try again later")
            raise ModelError(f"the hub refuses {self.repo}: status {status}; {mend}") from None
        except Exception as error:  # of whichever HTTP client the hub's library uses
            raise ModelError(f"{self.repo} could not be sent to the hub: {error}") from None
        return str(made)

    def pack(self, target: Path, merged: bool = False) -> Path:
        """The checkpoint, its card and the report in a folder of their own, and nothing else of the
        run. `merged`: an adapter as weights."""
        if target.exists():
            raise RecipeError(f"{target} exists; name another folder")
        if self.report and not self.report.is_dir():
            raise RecipeError("no report yet; `flatgd run` builds it")
        with atomic_folder(target) as beside:
            if merged:
                load(self.folder).save_pretrained(beside)
                load_tokenizer(str(self.folder)).save_pretrained(beside)
            else:
                for path in self.files:
                    shutil.copy2(path, beside)
            (beside / layout.CARD).write_text(self.card)
            if self.report:
                shutil.copytree(self.report, beside / layout.REPORT)
        return target


def write_cards(recipe: Recipe) -> None:
    """A README.md beside each method's checkpoint, the card that a push would send."""
    for method in recipe.methods:
        if METHODS[recipe.kind_of(method)].needs_guide:
            continue
        folder = recipe.output / layout.model(method)
        (folder / layout.CARD).unlink(missing_ok=True)  # it may be a link to a twin's
        ModelCard(ModelPackage(recipe, method, f"{recipe.name}-{method}").card).save(
            folder / layout.CARD
        )


def _folder(recipe: Recipe, method: str, even_toxic: bool) -> Path:
    """The finished checkpoint of a method, and of the toxic expert if it is asked for outright."""
    if method == "toxic_expert":
        folder = recipe.output / layout.model(method)
        if not even_toxic:
            raise UnsupportedError(
                "the toxic expert is a tool of training and is not published; to give it to "
                "other researchers, --even-toxic"
            )
        if not folder.is_dir():
            raise RecipeError("toxic_expert is not trained yet; `flatgd run` trains it")
        return folder
    if method not in recipe.methods:
        raise RecipeError(
            f"no method {method!r} in this recipe; it has {', '.join(recipe.methods)}"
        )
    if METHODS[recipe.kind_of(method)].needs_guide:
        raise UnsupportedError(
            f"{method} speaks as measured only with its guide, which a model repository cannot "
            "carry; publish another method"
        )
    folder = recipe.output / layout.model(method)
    trained_with(recipe, method)
    if is_toxic_expert(folder):
        raise UnsupportedError(f"{folder} holds a toxic expert, which is not published")
    return folder


def usage(dialogue_format: DialogueFormat, name: str) -> str:
    """Code that answers a history as the model was trained to: with the same layout of turns."""
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
        f"print(tokenizer.decode(reply[0]{_begin(dialogue_format)}, skip_special_tokens=True))",
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


def _begin(dialogue_format: DialogueFormat) -> str:
    return '[inputs["input_ids"].shape[1] :]' if isinstance(dialogue_format, Causal) else ""
