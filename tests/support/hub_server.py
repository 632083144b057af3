"""A stand-in for the Hugging Face hub: repositories in memory, the few calls that a push and a
`from_pretrained` make."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`repos` maps a repository's name to its files; `private` holds those made private, `log`
    what was done."""

    daemon_threads = True

    def __init__(self, token: str = "hf_test"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.log: list[str] = []  # what was done, in order

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repos:
                return self._json({"error": "You already created this model repo"}, 409)
            self.server.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self._json({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            kept = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._json({"files": kept})
        if path.endswith("/commit/main"):
            files = self.server.repos[self._repo(path)]
            self.server.log.append("commit")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/{self._repo(path)}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT})
        return self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        name = self._repo(urlsplit(self.path).path)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self.server.log += [f"gated {asked['gated']}"] if "gated" in asked else []
        self._json({})

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def _serve(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name = self._repo(path)
            if name not in self.server.repos:
                return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            if "/tree/" in path:
                return self._json([])
            siblings = [{"rfilename": file} for file in self.server.repos[name]]
            return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
        name, found, rest = path[1:].partition("/resolve/")
        if not found or name not in self.server.repos:
            return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
        body = self.server.repos[name].get(rest.partition("/")[2])
        if body is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
        return None

    def _repo(self, path: str) -> str:
        return "/".join(path.removeprefix("/api/models/").split("/")[:2])

    def _json(self, value: Any, status: int = 200, error: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass
