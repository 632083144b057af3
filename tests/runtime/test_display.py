"""Progress of long parts: bars on a terminal, a line every 30 seconds elsewhere."""

from io import StringIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from flatgd.runtime.callbacks import Advance
from flatgd.runtime.display import Display
from flatgd.runtime.progress_lines import Bytes, Items, ProgressLines, clock


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def logged(clock: Clock, **options: bool) -> tuple[Display, StringIO]:
    file = StringIO()
    return Display(Console(file=file, highlight=False, **options), now=clock), file


def work(display: Display, clock: Clock, steps: int, seconds: float, begin: int = 0) -> None:
    """A training of 400 steps that has done `begin` of them, does `steps` more and is stopped."""
    with display.bar("flatgd", 400, "steps") as advance:
        callback = Advance(advance)
        callback.on_train_begin(None, SimpleNamespace(global_step=begin), None)
        for _ in range(steps):
            clock.seconds += seconds
            callback.on_step_end(None, None, None)


def test_a_line_every_30_seconds() -> None:
    """4 steps a second for 100 seconds: 120 steps in 30 seconds, and the others take 70 more."""
    clock = Clock()
    display, file = logged(clock)
    work(display, clock, 400, 0.25)
    assert file.getvalue().splitlines() == [
        "  0:30  flatgd                     120/400 steps, 4.0/s, 1:10 left",
        "  1:00  flatgd                     240/400 steps, 4.0/s, 0:40 left",
        "  1:30  flatgd                     360/400 steps, 4.0/s, 0:10 left",
    ]


def test_nothing_for_a_short_part() -> None:
    clock = Clock()
    display, file = logged(clock)
    work(display, clock, 119, 0.25)
    work(display, clock, 119, 0.25)  # the 30 seconds begin with each part
    assert file.getvalue() == ""


def test_steps_of_before_are_no_part_of_the_rate() -> None:
    """300 steps done before, then one in 2 seconds: 15 more in 30 seconds, 85 left in 170."""
    clock = Clock()
    display, file = logged(clock)
    work(display, clock, 15, 2.0, begin=300)
    assert "315/400 steps, 30.0/min, 2:50 left" in file.getvalue()


def test_preparation_is_no_part_of_the_rate() -> None:
    """40 seconds until the training begins at step 300: a line without a rate. Then as above."""
    clock = Clock()
    display, file = logged(clock)
    with display.bar("flatgd", 400, "steps") as advance:
        clock.seconds = 40
        advance(300)
        for _ in range(15):
            clock.seconds += 2
            advance(1)
    lines = [line.split("flatgd")[1].strip() for line in file.getvalue().splitlines()]
    assert lines == ["300/400 steps", "315/400 steps, 30.0/min, 2:50 left"]


def test_long_steps_have_a_line_each() -> None:
    """A step takes 10 minutes, so 6 are done in an hour, and 399 and 398 take 66 hours each."""
    clock = Clock()
    display, file = logged(clock)
    work(display, clock, 2, 600)
    lines = file.getvalue().splitlines()
    assert [line.split("flatgd")[0].strip() for line in lines] == ["10:00", "20:00"]
    assert lines[0].endswith("1/400 steps, 6.0/h, 66:30:00 left")
    assert lines[1].endswith("2/400 steps, 6.0/h, 66:20:00 left")


def test_the_rate_is_that_of_the_last_ten_lines() -> None:
    """Ten lines at 1 step a second, ten at 2: five lines later the rate is 1.5, at the end 2."""
    clock, written = Clock(), []
    lines = ProgressLines(Items("steps"), written.append, clock)
    done = 0
    lines.update(done, None)
    for steps_a_second in (1, 2):
        for _ in range(10):
            clock.seconds += 30
            done += 30 * steps_a_second
            lines.update(done, None)
    rates = [line.split(", ")[1] for line in written]
    assert [rates[n] for n in (9, 14, 19)] == ["1.0/s", "1.5/s", "2.0/s"]
    assert written[19] == "900 steps, 2.0/s"


def test_more_than_the_total_is_no_negative_time() -> None:
    """The number of steps of a judge is approximate."""
    clock = Clock()
    display, file = logged(clock)
    with display.bar("judge", 2, "steps") as advance:
        advance(1)
        clock.seconds = 30
        advance(2)
    assert "3/3 steps, 4.0/min, 0:00 left" in file.getvalue()


def test_a_download() -> None:
    """20 MB are there and 70 come in 35 seconds; 110 MB are left. The second one begins again,
    and the server does not say how long it is."""
    clock, mega = Clock(), 1_000_000
    display, file = logged(clock)
    with display.download("file") as progress:
        progress(20 * mega, 200 * mega)
        clock.seconds = 35
        progress(90 * mega, 200 * mega)
    with display.download("file") as progress:
        progress(50 * mega, None)
        clock.seconds = 45
        progress(5 * mega, None)
        clock.seconds = 65
        progress(15 * mega, None)
    lines = [line.split("file")[1].strip() for line in file.getvalue().splitlines()]
    assert lines == ["90.0/200.0 MB, 2.00 MB/s, 0:55 left", "15.0 MB, 0.50 MB/s"]


def test_an_entry_of_a_log_file_is_one_line() -> None:
    text = "word " * 40 + "end"
    for kind, lines in ((StringIO, 1), (Terminal, 3)):
        file = kind()
        console = Console(file=file, width=80, _environ={"TERM": "xterm"})
        Display(console).line("data", text)
        assert len(file.getvalue().splitlines()) == lines


def test_an_entry_is_one_line_in_a_notebook_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    Display().line("report", "index.html")
    assert capsys.readouterr().out.split() == ["0:00", "report", "index.html"]


def test_quiet_prints_nothing() -> None:
    clock = Clock()
    display, file = logged(clock, quiet=True)
    work(display, clock, 400, 1.0)
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("file", "environment", "draws"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False),
        (StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (StringIO, {}, False),
    ],
)
def test_where_bars_are_drawn(
    file: type[StringIO], environment: dict[str, str], draws: bool
) -> None:
    """On a terminal that can redraw a line there are bars and no lines; elsewhere the reverse."""
    clock, shown = Clock(), file()
    display = Display(
        Console(file=shown, _environ=environment, width=100, highlight=False), now=clock
    )
    work(display, clock, 40, 1.0)
    with display.download("file") as progress:
        clock.seconds += 30
        progress(5_000_000, 10_000_000)
    said = shown.getvalue()
    assert ("30/400 steps" in said, "5.0/10.0 MB\n" in said) == (not draws, not draws)
    assert ("40/400" in said) == draws  # the bar's last state


def test_lines_are_in_the_file_when_they_are_printed(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "run.log"
    with TextIOWrapper(path.open("wb"), write_through=False) as file:
        display = Display(Console(file=file), now=clock)
        with display.bar("flatgd", 2, "steps") as advance:
            clock.seconds = 30
            advance(1)
            assert "1/2 steps" in path.read_text()


@pytest.mark.parametrize(
    ("a_second", "shown"),
    [(1234.5, "1,234.5/s"), (1.0, "1.0/s"), (0.5, "30.0/min"), (0.01, "36.0/h"), (0.0, "0.0/h")],
)
def test_rates_have_a_unit_in_which_they_can_be_read(a_second: float, shown: str) -> None:
    assert Items("steps").rate(a_second) == shown
    assert Bytes().rate(a_second * 1e6) == f"{a_second:,.2f} MB/s"


def test_the_clock_shows_hours_from_an_hour_on() -> None:
    assert [clock(s) for s in (0, 59.4, 59.6, 3599, 3600)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:00:00",
    ]
