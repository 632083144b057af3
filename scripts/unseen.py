"""Lists error messages of flatgd that no test triggers, from the last `make coverage`.

    python scripts/unseen.py        # reads coverage.json; exits with 1 if it finds any

Every `raise` counts, except a bare `raise`, NotImplementedError and exceptions whose names begin
with an underscore.
"""

import ast
import json
import sys
from pathlib import Path


def raised(node: ast.Raise) -> str:
    """The name of the exception; "" for a bare `raise`."""
    made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return getattr(made, "id", "") or getattr(made, "attr", "")


def unseen(path: Path, missing: set[int]) -> list[str]:
    """FILE:LINE: EXCEPTION for each statement that was not executed."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
    told = [(node.lineno, raised(node)) for node in nodes if node.lineno in missing]
    quiet = ("", "NotImplementedError")
    return [f"{path}:{line}: {name}" for line, name in told if name not in quiet and name[0] != "_"]


def main() -> int:
    files = json.loads(Path("coverage.json").read_text())["files"]
    found = [
        line
        for name, about in files.items()
        for line in unseen(Path(name), set(about["missing_lines"]))
    ]
    print("\n".join(found) or "every error message is triggered by a test")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
