"""How tests use a study's page as an annotator."""

import re

from starlette.testclient import TestClient

from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import QUESTIONS, field_of

BASE = "http://127.0.0.1:8765"


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r'name="(csrf|item)" value="(\w+)"', text))


def chosen(*choices: str) -> dict[str, str]:
    """The fields of an answer to the three questions."""
    return dict(zip(map(field_of, QUESTIONS), choices, strict=True))


def agreed(page: StudyPage, client: TestClient, name: str = "ann") -> str:
    """The path of an annotator who accepted the warning."""
    path = f"/a/{page.votes.invite(name)}"
    client.post(f"{path}/agree", data={"csrf": fields(client.get(path).text)["csrf"]})
    return path


def answer(client: TestClient, path: str, **change: str):
    """Choose A, Both, Neither for the pair that is shown."""
    form = {**fields(client.get(path).text), **chosen("left", "both", "neither")}
    return client.post(path, data={**form, **change})
