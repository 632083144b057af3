"""Many annotators answer a study's page at once. Is any answer lost or counted twice, and how long
does a request take?

    python -m benchmarks.annotators                 20 annotators, 1,000 items of 4 answers each
    python -m benchmarks.annotators --kills 100     the same while the server is killed with -9

An annotator loads a pair, answers it, and loads the next. Times are per request. With kills, a
request without a response is sent again, and every acknowledged answer must be there at the end.
"""

import http.client
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from benchmarks.table import Target, conclude, machine, options
from flatgd.annotate.pairs import create
from flatgd.annotate.study import CHOICES, QUESTIONS, field_of, load_study
from flatgd.annotate.votes import Votes
from flatgd.artifacts.rows import JudgedRow

CSRF = re.compile(r'name="csrf" value="(\w+)"')
ITEM = re.compile(r'name="item" value="(\w+)"')
PAIR = re.compile(r"Pair \d+ of")


def make_study(folder: Path, items: int, votes: int) -> None:
    generations: dict[str, list[JudgedRow]] = {
        model: [
            {
                "dataset": "invented",
                "conversation": f"c{n}",
                "system": "",
                "history": [{"role": "user", "content": f"number {n}"}],
                "replies": [f"{model} {n}"],
            }
            for n in range(items)
        ]
        for model in ("one", "other")
    }
    create(generations, "one", ["other"], items, votes=votes).save(folder)


class Server:
    """The page in its own process, which can be killed and started again."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        flatgd = str(Path(sys.executable).with_name("flatgd"))
        command = [flatgd, "annotate", "serve", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("These links"):
                return
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Client(threading.Thread):
    """An annotator who answers until no pair is left, and remembers the acknowledged answers."""

    def __init__(self, port: int, token: str, seed: int):
        super().__init__()
        self.port, self.path, self.rng = port, f"/a/{token}", random.Random(seed)
        self.times: list[float] = []
        self.acknowledged: dict[str, str] = {}
        self.unanswered = 0
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def run(self) -> None:
        page = self.ask("GET", self.path)
        csrf = CSRF.findall(page)[0]
        self.ask("POST", f"{self.path}/agree", csrf=csrf)
        while True:
            page = self.ask("GET", self.path)
            if not PAIR.search(page):
                if "Other annotators are working" not in page:
                    return
                time.sleep(0.05)
                continue
            item, choice = ITEM.findall(page)[0], self.rng.choice(CHOICES)
            answer = {field_of(name): choice for name in QUESTIONS}
            if "?late" not in self.ask("POST", self.path, csrf=csrf, item=item, **answer):
                self.acknowledged[item] = choice

    def ask(self, method: str, path: str, **form: str) -> str:
        """A page, or the location that a form redirects to. Retries until the server responds."""
        while True:
            try:
                begun = time.perf_counter()
                body = urlencode(form) if form else None
                kind = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
                self._line.request(method, path, body, kind)
                answer = self._line.getresponse()
                text = answer.read().decode()
                self.times.append(time.perf_counter() - begun)
                if answer.status == 303:
                    return str(answer.headers["location"])
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} for {method} {path}")
                return text
            except (OSError, http.client.HTTPException):
                self.unanswered += 1
                self._line.close()
                time.sleep(0.05)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--votes", type=int, default=4, help="answers per item")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--port", type=int, default=8799)
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        make_study(folder, given.items, given.votes)
        before = Votes(folder, load_study(folder))
        tokens = [before.invite(f"annotator {n}") for n in range(given.annotators)]
        before.close()
        server = Server(folder, given.port)
        clients = [Client(given.port, token, seed) for seed, token in enumerate(tokens)]
        begun = time.perf_counter()
        for client in clients:
            client.start()
        killed = _kill(server, given.kills, clients)
        for client in clients:
            client.join()
        seconds = time.perf_counter() - begun
        server.kill()
        return report(folder, clients, killed, seconds)


def _kill(server: Server, times: int, clients: list[Client]) -> int:
    """Kill the server at random moments and start it again."""
    rng = random.Random(0)
    for time_ in range(times):
        if not any(client.is_alive() for client in clients):
            return time_
        time.sleep(rng.uniform(0.0, 0.6))
        server.kill()
        server.start()
    return times


def report(folder: Path, clients: list[Client], killed: int, seconds: float) -> int:
    study = load_study(folder)
    votes = Votes(folder, study)
    kept = {(a.annotator, a.item): a.choice for a in votes.answers() if a.question == "toxic"}
    votes.close()
    acknowledged = {
        (f"annotator {n}", item): choice
        for n, client in enumerate(clients)
        for item, choice in client.acknowledged.items()
    }
    counts = Counter(item for _, item in kept)
    times = np.array([t for client in clients for t in client.times]) * 1000
    lost = sum(kept.get(place) != choice for place, choice in acknowledged.items())
    uneven = sum(counts[item["id"]] != study.votes for item in study.items)
    print(
        f"{len(clients)} annotators, {len(acknowledged):,} answers acknowledged, {len(kept):,} kept"
    )
    print(f"killed {killed} times, {sum(c.unanswered for c in clients):,} requests unanswered")
    middle, p95, p99 = np.percentile(times, (50, 95, 99))
    print(f"{len(times):,} requests in {seconds:.1f} s; ms: {middle:.1f} median, {p99:.1f} p99")
    targets = [
        Target("acknowledged and lost", lost, 0),
        Target("items without exactly their answers", uneven, 0),
    ]
    return conclude(targets if killed else [*targets, Target("p95 of a request, ms", p95, 100)])


if __name__ == "__main__":
    sys.exit(main())
