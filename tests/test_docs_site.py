"""The site holds every page and every public name. `make site` builds it and checks the links."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import pytest
import site_docstrings
import site_hooks
import yaml

import flatgd
import flatgd.flatness
import flatgd.losses
import flatgd.methods

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))


class Settings(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name functions and variables, without resolving them."""


Settings.add_multi_constructor("", lambda loader, suffix, node: None)
SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Settings)


def pages(nav: Any) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else pages(target)


def test_the_navigation_holds_every_page_once() -> None:
    listed = list(pages(SITE["nav"]))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert written | {site_hooks.NOTEBOOK_PAGE} <= set(listed)


def test_public_names_are_on_the_api_pages() -> None:
    shown = set(re.findall(r"^::: (\S+)", API, re.MULTILINE))
    assert {f"flatgd.{name}" for name in flatgd.__all__} <= shown
    whole = {"flatgd.losses": flatgd.losses, "flatgd.flatness": flatgd.flatness}
    assert whole.keys() <= shown
    kinds = {kind.__name__ for kind in flatgd.methods.METHODS.values()}
    assert kinds <= {name.rpartition(".")[2] for name in shown}
    index = (DOCS / "api/index.md").read_text()
    assert all(f"`{name}`" in index for name in flatgd.__all__)


def test_names_on_the_api_pages_exist_and_are_described() -> None:
    package: Any = griffe.load(
        "flatgd",
        search_paths=[ROOT],
        extensions=griffe.load_extensions(site_docstrings.PlainDocstrings),
    )
    for name in re.findall(r"^::: flatgd\.(\S+)", API, re.MULTILINE):
        assert package[name].docstring, name


def test_pages_load_nothing_from_other_hosts() -> None:
    assert SITE["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & SITE.keys()
    assert "analytics" not in SITE["extra"]
    assert "repo_url" not in SITE  # the theme would ask the host for stars


def test_a_broken_link_stops_the_build() -> None:
    levels = {level for part in SITE["validation"].values() for level in part.values()}
    assert levels == {"warn"}
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()


def test_the_numbers_of_the_front_page_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = [line for line in (DOCS / "index.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert all(row in readme for row in rows)


R = "recipes/r.yaml"


@pytest.mark.parametrize(
    ("place", "given", "linked", "unlinked"),
    [
        ("a.md", f"[r](../{R})", f"[r](URL/blob/main/{R})", f"r (`{R}`)"),
        ("a.md", f"[`r.yaml`](../{R}#x)", f"[`r.yaml`](URL/blob/main/{R}#x)", f"`{R}`"),
        ("a.md", "[all](../recipes)", "[all](URL/tree/main/recipes)", "all (`recipes`)"),
        ("api/a.md", "[b](../b.md)", "[b](../b.md)", "[b](../b.md)"),
        ("api/a.md", f"[r](../../{R})", f"[r](URL/blob/main/{R})", f"r (`{R}`)"),
    ],
)
def test_links_out_of_the_docs(
    tmp_path: Path, place: str, given: str, linked: str, unlinked: str
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/r.yaml").touch()
    assert site_hooks.outside_links(given, place, tmp_path, "URL") == linked
    assert site_hooks.outside_links(given, place, tmp_path, "") == unlinked


def test_a_link_to_a_missing_file_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site_hooks.outside_links("[r](../recipes/r.yaml)", "a.md", tmp_path, "")
    assert caplog.messages == ["a.md: recipes/r.yaml does not exist"]


def test_docstrings_become_markdown() -> None:
    given = ["Sum of a * b_i, <g, v>.", "    a * b", ">>> 1 + 1\n2", "See `a_b`."]
    wanted = [r"Sum of a \* b\_i, &lt;g, v&gt;.", given[1], f"```pycon\n{given[2]}\n```", given[3]]
    assert site_docstrings.as_markdown("\n\n".join(given)) == "\n\n".join(wanted)
