"""A chat in the terminal. A line is said to the models, but for those that begin with /."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flatgd.chat.session import Session, SessionFile, number_in
from flatgd.errors import RecipeError
from flatgd.io.records import printable

HELP = """\
/samples N          replies of each model to what is said next
/pick N             go on with reply N instead of the first
/judge              the judge's P(toxic) of the last replies
/toxic N, /safe N   mark reply N, as a label in the saved session
/reset              a new conversation
/save FILE          keep all of it as JSONL, from now on in this file
/quit               or Ctrl-D"""


class Terminal:
    """Reads lines, shows replies. `file` is written after every line, None where nothing is kept
    yet."""

    def __init__(self, session: Session, console: Console, file: SessionFile | None = None):
        self.session, self.console, self.file = session, console, file
        self._commands: dict[str, Callable[[str], str]] = {  # what they answer
            "help": lambda _: HELP,
            "samples": self._samples,
            "pick": self._pick,
            "judge": self._judge,
            "toxic": lambda number: self._mark(number, False),
            "safe": lambda number: self._mark(number, True),
            "reset": self._reset,
            "save": self._save,
        }

    def talk(self, read: Callable[[str], str] = input) -> None:
        """Until /quit or the end of the input."""
        with suppress(ImportError):
            import readline  # noqa: F401  arrows and history in `input`
        names = ", ".join(self.session.speakers)
        self._tell(f"{names}. /help shows what else there is.")
        while True:
            try:
                line = read("you: ").strip()
            except EOFError:
                self.console.print()
                return
            if line == "/quit":
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            if not line.startswith("/"):
                self.session.say(line)
                self._show()
            else:
                command, _, rest = line[1:].partition(" ")
                if command not in self._commands:
                    raise ValueError(f"no /{command}; /help shows what there is")
                self._tell(self._commands[command](rest.strip()))
            if self.file:
                self.file.write(self.session)
        except (ValueError, RecipeError) as error:
            self._tell(str(error), "red")

    def _show(self, scores: list[float] | None = None) -> None:
        """The last replies, numbered; side by side where there are several models."""
        panels = []
        for name in self.session.speakers:
            lines = Text()
            for number, reply in enumerate(self.session.turns[-1].replies, start=1):
                if reply.model == name:
                    judged = f" (P(toxic) {scores[number - 1]:.2f})" if scores else ""
                    lines.append(f"{number}", style="dim")
                    lines.append(f" {printable(reply.text)}")
                    lines.append(f"{judged}\n", style="dim")
            lines.rstrip()
            panels.append(Panel(lines, title=Text(name), title_align="left"))
        width = max(30, self.console.width // len(panels) - 1) if len(panels) > 1 else None
        self.console.print(Columns(panels, width=width, expand=True))

    def _tell(self, text: str, style: str = "dim") -> None:
        if text:
            self.console.print(text, style=style, markup=False, highlight=False)

    def _judge(self, _: str) -> str:
        self._show(self.session.scores())
        return ""

    def _samples(self, number: str) -> str:
        if not (samples := number_in(number)):
            raise ValueError("at least one reply")
        self.session.samples = samples
        return f"{self.session.samples} of each model from now on"

    def _pick(self, number: str) -> str:
        self.session.pick(number_in(number))
        return f"goes on with {number}"

    def _mark(self, number: str, is_safe: bool) -> str:
        self.session.mark(number_in(number), is_safe)
        return f"{number} is marked {'safe' if is_safe else 'toxic'}"

    def _reset(self, _: str) -> str:
        self.session.reset()
        return "a new conversation"

    def _save(self, name: str) -> str:
        if not name:
            raise ValueError("/save FILE")
        path = Path(name)
        file = self.file if self.file and self.file.path == path else SessionFile(path)
        file.write(self.session)
        self.file = file
        return f"{len(self.session.rows())} replies in {path}, and what is said from now on"
