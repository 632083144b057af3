"""Pages of a report: one file each, without network, complete without script."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flatgd.report.charts import key

PAGES = Path(str(files("flatgd.report") / "pages"))
SHARED = Path(str(files("flatgd.web") / "pages"))
CHART_CSS = "\n".join(path.read_text() for path in (SHARED / "palette.css", PAGES / "charts.css"))


def render(template: str, **values: Any) -> str:
    """A page with its styles and its script inside. Only that script may run."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """What every page has. A run in progress writes its page every few seconds."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = (SHARED / "style.css").read_text(), CHART_CSS, (PAGES / "report.css").read_text()
    script = (PAGES / "report.js").read_text()
    environment.globals |= {
        "css": Markup("\n".join(styles)),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "key": key,
    }
    return environment
