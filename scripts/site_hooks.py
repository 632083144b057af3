"""What mkdocs calls while it builds the site (mkdocs.yml).

The notebook becomes a page: its cells in order, without outputs, which the committed file has none
of. Links to files outside docs/ lead to the repository, or become the file's path where the address
of the repository is not known.
"""

import json
import logging
import re
from pathlib import Path
from posixpath import dirname, normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NOTEBOOK, NOTEBOOK_PAGE = "notebook.ipynb", "notebook.md"
UPWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
TO_NOTEBOOK = re.compile(rf"\]\(((?:\.\./)*){re.escape(NOTEBOOK)}\)")
DOWNLOAD = f"[Download the notebook]({NOTEBOOK})"
logger = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook's page."""
    text = (Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8")
    files.append(File.generated(config, NOTEBOOK_PAGE, content=notebook_page(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect links that mkdocs cannot follow."""
    root = Path(config.docs_dir).parent
    place = page.file.src_uri
    if place != NOTEBOOK_PAGE:
        markdown = TO_NOTEBOOK.sub(rf"](\1{NOTEBOOK_PAGE})", markdown)
    return outside_links(markdown, place, root, config.extra["repository"])


def notebook_page(text: str) -> str:
    """The cells of a notebook as Markdown, with a link to the file below the title."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, DOWNLOAD)
    return "\n\n".join(parts) + "\n"


def outside_links(markdown: str, place: str, root: Path, repository: str) -> str:
    """Links out of docs/ as links into the repository, or as paths. A missing file is a warning,
    which stops a strict build."""

    def redirected(link: re.Match[str]) -> str:
        text, anchor = link[1], link[3] or ""
        path = normpath(f"docs/{dirname(place)}/{link[2]}")
        if path.startswith("docs/"):
            return link[0]
        target = root / path
        if not target.exists():
            logger.warning("%s: %s does not exist", place, path)
        if repository:
            kind = "tree" if target.is_dir() else "blob"
            return f"[{text}]({repository}/{kind}/main/{path}{anchor})"
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return UPWARD.sub(redirected, markdown)
