"""A Hub and a plain file server in a thread: as much of both as `affectgpt fetch` meets."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeServer:
    """What it serves, how it misbehaves, and what it was asked.

    Attributes:
      repos: "models/OWNER/NAME" or "datasets/OWNER/NAME" -> file -> content; files of 100 bytes and more are in LFS.
      plain: path -> content.
      gated: repositories that want the token "granted".
      cut: file name -> how many bytes the next answer ends after.
      broken: file name -> what is sent in the place of its content.
      status: file name -> HTTP statuses of the next answers.
      resumes: whether it knows Range.
      requests: (method, path, token, Range) of each.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    broken: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    resumes: bool = True
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self, name: str) -> list[str]:
        """The Range of each request for a file's content."""
        return [span for _, path, _, span in self.requests if path.endswith(name)]


@contextmanager
def serve() -> Iterator[FakeServer]:
    state = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            token = self.headers.get("Authorization", "")
            state.requests.append(("GET", path, token, self.headers.get("Range", "")))
            if path.startswith("/api/"):
                return self.api(path.removeprefix("/api/"), token)
            if path.startswith(("/cdn/", "/plain/")):
                return self.content(path)
            head, _, rest = path.removeprefix("/").partition("/resolve/")
            repo = head if head.startswith("datasets/") else f"models/{head}"
            name = rest.partition("/")[2]
            if repo in state.gated and token != "Bearer granted":
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            content = state.repos.get(repo, {}).get(name)
            if content is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if len(content) < 100:
                return self.content(path, content)
            state.plain[f"/cdn/{repo}/{name}"] = content
            # Another host, as on the Hub: the token must not get there.
            return self.answer(302, b"", {"Location": f"http://localhost:{state.port}/cdn/{repo}/{name}"})

        def api(self, path: str, token: str) -> None:
            repo = path.removesuffix("/auth-check")
            if repo not in state.repos:
                return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            if path != repo:
                refused = repo in state.gated and token != "Bearer granted"
                return self.answer(403 if refused else 200, b"{}", {"X-Error-Code": "GatedRepo"} if refused else {})
            siblings = []
            for name, content in state.repos[repo].items():
                about: dict[str, object] = {"rfilename": name, "size": len(content)}
                about["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                if len(content) >= 100:
                    about["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
                siblings.append(about)
            gated = "auto" if repo in state.gated else False
            info = {"id": repo.partition("/")[2], "sha": COMMIT, "gated": gated, "siblings": siblings}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def content(self, path: str, content: bytes | None = None) -> None:
            name = path.rpartition("/")[2]
            content = state.plain.get(path) if content is None else content
            if codes := state.status.get(name):
                return self.answer(codes.pop(0), b"")
            if content is None:
                return self.answer(404, b"")
            content = state.broken.get(name, content)
            start, headers, code = 0, {}, 200
            if state.resumes and (span := self.headers.get("Range")):
                start, code = int(span.removeprefix("bytes=").removesuffix("-")), 206
                if start >= len(content):
                    return self.answer(416, b"")
            return self.answer(code, content[start:], headers, state.cut.pop(name, None))

        def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
