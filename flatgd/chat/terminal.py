"""A chat in the terminal. Lines go to the models, except commands, which begin with /."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flatgd.chat.session import EXAMPLE, Session, SessionFile, parse_number
from flatgd.errors import UsageError
from flatgd.io.records import printable

HELP = """\
/samples N          sample N replies per model from now on
/pick N             continue with reply N instead of the first
/judge              show the judge's P(toxic) of the last replies
/toxic N, /safe N   label reply N in the saved session
/reset              begin a new conversation
/save FILE          save the session as JSONL, and keep the file up to date
/quit               end the chat, as Ctrl-D does"""


class Terminal:
    """Reads lines and shows replies. `file` is written after every line, if there is one."""

    def __init__(self, session: Session, console: Console, file: SessionFile | None = None):
        self.session, self.console, self.file = session, console, file
        self._commands: dict[str, Callable[[str], str]] = {  # each returns a message
            "help": lambda _: HELP,
            "samples": self._samples,
            "pick": self._pick,
            "judge": self._judge,
            "toxic": lambda number: self._label(number, False),
            "safe": lambda number: self._label(number, True),
            "reset": self._reset,
            "save": self._save,
        }

    def run(self, read: Callable[[str], str] = input) -> None:
        """Chat until /quit or the end of the input."""
        with suppress(ImportError):
            import readline  # noqa: F401  enables arrow keys and history in `input`
        names = ", ".join(self.session.models)
        self._print(f"{names}. /help lists the commands. An opening to try: {EXAMPLE}")
        while True:
            try:
                line = read("you: ").strip()
            except EOFError:
                self.console.print()
                return
            if line == "/quit":
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        try:
            if not line.startswith("/"):
                self.session.send(line)
                self._show()
            else:
                command, _, argument = line[1:].partition(" ")
                if command not in self._commands:
                    raise ValueError(f"unknown command /{command}; /help lists the commands")
                self._print(self._commands[command](argument.strip()))
            if self.file:
                self.file.write(self.session)
        except (ValueError, UsageError) as error:
            self._print(str(error), "red")

    def _show(self, scores: list[float] | None = None) -> None:
        """Print the last replies with their numbers, one panel for each model."""
        panels = []
        for name in self.session.models:
            lines = Text()
            for number, reply in enumerate(self.session.turns[-1].replies, start=1):
                if reply.model == name:
                    score = f" (P(toxic) {scores[number - 1]:.2f})" if scores else ""
                    lines.append(f"{number}", style="dim")
                    lines.append(" " + "\n".join(map(printable, reply.text.split("\n"))))
                    lines.append(f"{score}\n", style="dim")
            lines.rstrip()
            panels.append(Panel(lines, title=Text(name), title_align="left"))
        width = max(30, self.console.width // len(panels) - 1) if len(panels) > 1 else None
        self.console.print(Columns(panels, width=width, expand=True))

    def _print(self, text: str, style: str = "dim") -> None:
        if text:
            self.console.print(text, style=style, markup=False, highlight=False)

    def _judge(self, _: str) -> str:
        self._show(self.session.scores())
        return ""

    def _samples(self, number: str) -> str:
        if not (samples := parse_number(number)):
            raise ValueError("sample at least one reply")
        self.session.samples = samples
        return f"{self.session.samples} replies per model from now on"

    def _pick(self, number: str) -> str:
        self.session.pick(parse_number(number))
        return f"reply {number} continues the conversation"

    def _label(self, number: str, is_safe: bool) -> str:
        self.session.label(parse_number(number), is_safe)
        return f"reply {number} is labelled {'safe' if is_safe else 'toxic'}"

    def _reset(self, _: str) -> str:
        self.session.reset()
        return "new conversation"

    def _save(self, name: str) -> str:
        if not name:
            raise ValueError("/save needs a file name: /save FILE")
        path = Path(name)
        file = self.file if self.file and self.file.path == path else SessionFile(path)
        file.write(self.session)
        self.file = file
        return f"saved {len(self.session.rows())} replies in {path}; later ones are added to it"
