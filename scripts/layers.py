"""The layers of flatgd, and the figures of a tree's layout.

    python scripts/layers.py                       # this tree
    git worktree add ../before COMMIT
    python scripts/layers.py ../before           # another one

A part is a folder of the package or a module at its root. Imports inside functions and for
annotations count; the package's own `__init__`, which loads public names when they are first used,
does not.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

# A part imports from the lines below its own, and from itself. Top first.
LAYERS = [
    ("__main__",),
    ("cli",),
    ("run",),
    ("publish", "studies"),
    ("report", "pipeline"),
    ("annotate", "chat", "training"),
    ("evaluation", "judges", "methods"),
    ("artifacts", "data", "models"),
    ("web", "io", "config"),
    ("errors", "dialogue", "runtime", "losses", "flatness"),
]
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions and for annotations."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "flatgd":
            found |= {f"flatgd.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part_of(path: Path, package: Path) -> str:
    """The folder, or the module at the root, that a file belongs to."""
    first, *rest = path.relative_to(package).parts
    return first if rest else first.removesuffix(".py")


def parts_of(package: Path) -> set[str]:
    """All parts of a package but its `__init__`."""
    return {part_of(path, package) for path in package.rglob("*.py")} - {"__init__"}


def imports_between(package: Path) -> list[tuple[Path, str, str]]:
    """(file, its part, imported part) of each import of one part by another."""
    parts = parts_of(package)
    found = []
    for path in sorted(package.rglob("*.py")):
        own = part_of(path, package)
        names = [name.split(".") for name in imports(path) if name.startswith("flatgd.")]
        for other in sorted({name[1] for name in names} & parts - {own}):
            if own != "__init__":
                found.append((path, own, other))
    return found


def upward(package: Path) -> list[str]:
    """Imports that do not point to a lower layer, as "FILE imports PART"."""
    return [
        f"{path.relative_to(package)} imports {other}"
        for path, own, other in imports_between(package)
        if LEVEL[other] >= LEVEL[own]
    ]


def longest_chain(below: Mapping[str, set[str]]) -> int:
    """The number of layers: parts on the longest way down. A cycle counts as one part."""
    reach = {part: _reached(part, below) for part in below}
    groups = {part: frozenset(p for p in reach[part] if part in reach[p]) for part in below}

    def depth(group: frozenset[str]) -> int:
        lower = {groups[other] for part in group for other in below[part]} - {group}
        return 1 + max(map(depth, lower), default=0)

    return max(map(depth, set(groups.values())))


def _reached(part: str, below: Mapping[str, set[str]]) -> set[str]:
    """The part and all that it imports, directly or through others."""
    found, ahead = {part}, [part]
    while ahead:
        new = below[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def figures(package: Path) -> dict[str, int | str]:
    """What `main` prints."""
    edges = {(own, other) for _, own, other in imports_between(package)}
    parts = parts_of(package)
    below = {part: {other for own, other in edges if own == part} for part in parts}
    known = parts == LEVEL.keys()
    return {
        "modules at the root": len(list(package.glob("*.py"))),
        "layers (longest chain of imports)": longest_chain(below),
        "upward imports": len(upward(package)) if known else "no layers defined",
        "imports between modules and folders": len(edges),
    }


def main() -> None:
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    if not (tree / "flatgd").is_dir():
        sys.exit(f"{tree} holds no folder flatgd: name the root of a checkout")
    for name, value in figures(tree / "flatgd").items():
        print(f"{name:<38}{value}")


if __name__ == "__main__":
    main()
