"""Docstrings as Markdown, for the API pages of the site (mkdocs.yml).

Docstrings are plain text: a formula may hold `*`, `_`, `<` or `[`, and doctests begin with `>>>`.
This extension of griffe, which reads the source without importing it, makes doctests code, leaves
indented blocks and `names` alone, and escapes what Markdown would take for markup elsewhere. A
method's formula stands in the docstring of its file; a class without a docstring shows that one.
"""

import re
from typing import Any

import griffe

CODE = re.compile(r"(`[^`]*`)")
MARKUP = re.compile(r"([\\*_\[\]])")


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring of a package once."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Griffe calls this when a package has been read."""
        _rewrite(pkg)


def _rewrite(item: griffe.Object) -> None:
    """Members before the item itself, so that a class finds its file's docstring as it was."""
    for member in item.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)
    if isinstance(item, griffe.Class) and not item.docstring and item.module.docstring:
        item.docstring = griffe.Docstring(item.module.docstring.value, parent=item)
    if item.docstring:
        item.docstring.value = as_markdown(item.docstring.value)


def as_markdown(text: str) -> str:
    r"""The text of a docstring as Markdown.

    >>> as_markdown("sum of a * b, <g, v> and `a_b`")
    'sum of a \\* b, &lt;g, v&gt; and `a_b`'
    """
    return "\n\n".join(map(_paragraph, re.split(r"\n[ \t]*\n", text)))


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    if text.startswith("    "):
        return text
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))
