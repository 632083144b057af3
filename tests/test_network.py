"""No network that was not asked for: every local command runs where none can be reached."""

import json
import os
import subprocess
import sys
from pathlib import Path

BLOCKED = """
import json, socket, sys
def refuse(*args, **kwargs):
    print("NETWORK", args[1:], flush=True)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
COMMANDS = """
from flatgd.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["flatgd", *words]
    try:
        main()
    except SystemExit as done:
        assert not done.code, words
    print("DONE", words[0])
"""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *words],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_local_commands_reach_for_no_network(recipe_file: Path) -> None:
    recipe, folder = str(recipe_file), recipe_file.parent
    policy = str(folder / "policy.jsonl")
    commands = [
        ["--version"],
        ["run", recipe, "--set", "methods={flatgd: {}}"],
        ["check", recipe],
        ["report", recipe, "--set", "methods={flatgd: {}}"],
        ["label", recipe, "--to", str(folder / "labels.jsonl"), "--method", "flatgd"],
        ["data", "stats", "jsonl", policy],
        ["data", "show", "jsonl", policy],
        ["data", "convert", "jsonl", policy, "--to", str(folder / "converted.jsonl")],
        ["push", recipe, "--repo", "me/model", "--dry-run", "--set", "methods={flatgd: {}}"],
        ["init", str(folder / "mine.yaml"), "--replies", policy],
    ]
    done = python(COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("DONE") == len(commands)
    assert "NETWORK" not in done.stdout


def test_the_block_blocks() -> None:
    """Else the test above could not fail."""
    assert "NETWORK" in python("socket.create_connection(('a', 1))").stdout
