"""A hub and plain web servers on this computer: real HTTP on 127.0.0.1, with the headers, redirects, ranges and refusals of the real ones.

Small files are served by the hub itself, large ones ("LFS") by a second server on another port, to which the first one redirects, as
the real hub leads to its content delivery network. A third server mirrors web servers, each in a folder of its host's name.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

BLOCK = 1 << 16


@dataclass
class ServedFile:
    """One file and how it misbehaves."""

    content: bytes
    lfs: bool = True
    etag: str | None = None  # instead of the right one
    drop_after: list[int] = field(default_factory=list)  # for each coming transfer: break it after so many bytes
    ranges: bool = True
    pause_s: float = 0.0  # after every block
    trickles: bool = False  # for as long as this is set, a byte at a time: the transfer is never done

    @property
    def stated_etag(self) -> str:
        if self.etag is not None:
            return self.etag
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


class LocalHub:
    """Serves ``repositories``: id -> path -> file. Everything that was asked is in ``requests``."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, ServedFile]] = {}
        self.pages: dict[str, ServedFile] = {}  # path, host first -> file
        self.gated: dict[str, int] = {}  # repository -> status
        self.commit = "0123456789abcdef0123456789abcdef01234567"
        self.busy = 0  # so many coming requests are answered by 503
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []  # server, method, path, headers
        self._servers = [self._server(role) for role in ("hub", "cdn", "web")]

    def _server(self, role: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "role": role})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self._servers[2].server_port}"

    def put_page(self, address: str, content: bytes, **behaviour: object) -> ServedFile:
        served = ServedFile(content, **behaviour)  # type: ignore[arg-type]
        self.pages["/" + address.removeprefix("https://")] = served
        return served

    def put(self, repository: str, path: str, content: bytes, **behaviour: object) -> ServedFile:
        served = ServedFile(content, **behaviour)  # type: ignore[arg-type]
        self.repositories.setdefault(repository, {})[path] = served
        return served

    def asked(self, method: str = "GET") -> list[str]:
        return [path for _, how, path, _ in self.requests if how == method]

    def ranges(self, server: str = "cdn") -> list[str | None]:
        """The ranges that the content server was asked for."""
        return [headers.get("range") for role, how, _, headers in self.requests if (role, how) == (server, "GET")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    role: str
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.role, self.command, self.path, headers))
        if self.hub.busy:
            self.hub.busy -= 1
            self._refuse(503)
        elif self.role == "web":
            if self.path in self.hub.pages:
                served = self.hub.pages[self.path]
                self._send(served, {"ETag": f'"{served.stated_etag}"'})
            else:
                self._refuse(404)
        elif self.role == "cdn":
            _, owner, name, path = self.path.split("/", 3)
            self._send(self.hub.repositories[f"{owner}/{name}"][path])
        else:
            self._resolve()

    def _resolve(self) -> None:
        if self.path.count("/") < 5:
            self._refuse(404)
            return
        _, owner, name, _, revision, path = self.path.split("/", 5)
        repository = f"{owner}/{name}"
        if repository in self.hub.gated:
            self._refuse(self.hub.gated[repository], "GatedRepo")
        elif repository not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", self.hub.commit):
            self._refuse(404, "RevisionNotFound")
        elif path not in self.hub.repositories[repository]:
            self._refuse(404, "EntryNotFound")
        else:
            served = self.hub.repositories[repository][path]
            about = {"ETag": f'"{served.stated_etag}"'}
            if self.hub.commit:  # without: what a proxy's log-in page looks like
                about["X-Repo-Commit"] = self.hub.commit
            if not served.lfs:
                self._send(served, about)
                return
            about |= {"X-Linked-Etag": f'"{served.stated_etag}"', "X-Linked-Size": str(len(served.content))}
            self._head(302, about | {"Location": f"{self.hub.cdn}/{repository}/{path}", "Content-Length": "0"})

    def _send(self, served: ServedFile, extra: dict[str, str] | None = None) -> None:
        content, start, status, headers = served.content, 0, 200, dict(extra or {})
        asked = self.headers.get("Range")
        if asked and served.ranges:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(content):
                self._refuse(416)
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(status, headers | {"Content-Length": str(len(content) - start)})
        if self.command == "HEAD":
            return
        end = start + served.drop_after.pop(0) if served.drop_after else len(content)
        at = start
        while at < min(end, len(content)):
            trickles = served.trickles
            sent = content[at : min(at + (1 if trickles else BLOCK), end)]
            try:
                self.wfile.write(sent)
                self.wfile.flush()
            except OSError:  # the client has gone
                break
            at += len(sent)
            time.sleep(0.02 if trickles else served.pause_s)
        if end < len(content):
            self.close_connection = True

    def _refuse(self, status: int, code: str | None = None) -> None:
        self._head(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
