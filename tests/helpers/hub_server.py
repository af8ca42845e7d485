"""A server that gives models and datasets as the Hugging Face Hub does, from memory.

It answers what `huggingface_hub` asks for when it downloads: the commit of a model or a dataset,
its files with their sizes and hashes, and the files themselves, also from a byte on. Of large files
(LFS) the hash is a SHA-256, of others git's.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c" * 40
LARGE = ".safetensors"  # the files that are kept by LFS


@dataclass
class Stored:
    """A file on the server."""

    content: bytes
    is_large: bool
    sent: bytes | None = None
    """what is sent in its place"""
    cuts: int = 0
    """how many answers break off before the end"""
    cut_after: int = 0
    """bytes that these send"""

    @property
    def git_hash(self) -> str:
        """As git names a blob."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub calls the file's version."""
        return hashlib.sha256(self.content).hexdigest() if self.is_large else self.git_hash


@dataclass
class HubServer:
    """Models by their names, each a folder of files; what was asked for."""

    url: str = ""
    models: dict[str, dict[str, Stored]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path) -> dict[str, Stored]:
        """Put the files of a folder there as the model `name`."""
        self.models[name] = {
            path.name: Stored(path.read_bytes(), path.suffix == LARGE) for path in folder.iterdir()
        }
        return self.models[name]

    @property
    def files_sent(self) -> list[str]:
        """Names of the files that were fetched, in their order."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET /me/")]


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        """A file's size and hash."""
        self._answer()

    def do_GET(self) -> None:
        """A model, its files, or a file."""
        self._answer()

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        listing = re.fullmatch(
            r"/api/(?:models|datasets)/(\w+/\w+)(?:/(revision|tree)/\w+(/\w+)?)?", path
        )
        one = re.fullmatch(rf"/(?:datasets/)?(\w+/\w+)/resolve/(?:main|{COMMIT})/([\w./-]+)", path)
        found = listing or one
        model = self.hub.models.get(found[1]) if found else None
        if model is None:
            self._missing("RepoNotFound")
        elif listing and listing[3]:  # a folder
            self._missing("EntryNotFound")
        elif listing:
            self._listed(listing[1], model, is_tree=listing[2] == "tree")
        elif one[2] not in model:
            self._missing("EntryNotFound")
        else:
            self._file(model[one[2]])

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _listed(self, name: str, model: dict[str, Stored], is_tree: bool) -> None:
        tree = [
            {
                "type": "file",
                "path": path,
                "oid": stored.git_hash,
                "size": len(stored.content),
                **({"lfs": _pointer(stored)} if stored.is_large else {}),
            }
            for path, stored in model.items()
        ]
        about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in model]}
        self._send(200, json.dumps(tree if is_tree else about).encode(), {})

    def _file(self, stored: Stored) -> None:
        content = stored.content if stored.sent is None else stored.sent
        names = {"ETag": f'"{stored.etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, status = 0, 200
        if first:
            start, status = int(first[1]), 206
            names["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], names, stored)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], stored: Stored | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if stored is not None and stored.cuts:
            stored.cuts -= 1
            self.wfile.write(body[: stored.cut_after])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


def _pointer(stored: Stored) -> dict[str, object]:
    return {"oid": stored.etag, "size": len(stored.content), "pointerSize": 134}


@contextmanager
def running() -> Iterator[HubServer]:
    """A server without models; in the environment HF_ENDPOINT is to be its `url`."""
    hub = HubServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answer,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
