"""A server on the loopback that answers huggingface_hub as the Hub does, with faults to order.

Files: weights are "LFS": ``resolve`` names their SHA-256 and redirects to another host, which honours Range; all others
are served directly under git's SHA-1. Uploads: what ``HfApi.create_repo`` and ``upload_folder`` ask for.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@dataclass
class Hub:
    """repository -> file -> content; what goes wrong; what was asked for."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gets: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of every GET for content
    tokens: set[str] = field(default_factory=set)  # hosts of those GETs that came with a token
    cut_after: int | None = None  # bytes of content, after which a GET's connection ends
    resets: bool = False  # it ends with a reset instead of a close
    cuts: int = 0  # how many GETs are still cut; 0: none
    corrupt: bool = False  # content is not what its hash says
    etag: str | None = None  # of small files, instead of git's SHA-1
    stores: dict[str, bytes] = field(default_factory=dict)  # uploaded content by SHA-256
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """Another host, to which no HEAD is followed and no token goes."""
        return f"http://localhost:{self.port}"

    def find(self, digest: str) -> bytes:
        contents = [content for files in self.repositories.values() for content in files.values()]
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)


def is_large(file: str) -> bool:
    return file.endswith((".pt", ".pth", ".safetensors", ".bin"))


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start it; ``server.shutdown()`` and ``server.server_close()`` end it."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", hub.port), Handler)
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    state: Hub

    def do_HEAD(self):
        self._resolve(body=False)

    def do_GET(self):
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", self.path):
            self._content(self.state.find(match[1]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", self.path.split("?")[0]):
            self._about(match[1])
        else:
            self._resolve(body=True)

    def _resolve(self, body: bool) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        files = self.state.repositories.get(match[1]) if match else None
        if files is None:
            return self._error("RepoNotFound")
        if match[2] not in ("main", COMMIT):
            return self._error("RevisionNotFound")
        if match[3] not in files:
            return self._error("EntryNotFound")
        content, head = files[match[3]], {"X-Repo-Commit": COMMIT}
        if is_large(match[3]):
            digest = hashlib.sha256(content).hexdigest()
            head |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self._send(302, b"", {**head, "Location": f"{self.state.cdn}/cdn/{digest}"})
        own = hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()
        head["ETag"] = f'"{self.state.etag or own}"'
        if body:
            return self._content(content, head)
        return self._send(200, b"", {**head, "Content-Length": str(len(content))})

    def _content(self, content: bytes, head: dict[str, str] | None = None) -> None:
        asked = self.headers.get("Range")
        self.state.gets.append((self.path, asked))
        if "Authorization" in self.headers:
            self.state.tokens.add(self.headers["Host"].partition(":")[0])
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if self.state.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        head = {**(head or {}), "Content-Length": str(len(content) - start)}
        if asked:
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if asked else 200)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        rest = content[start:]
        if self.state.cuts and self.state.cut_after is not None:
            self.state.cuts -= 1
            self.wfile.write(rest[: self.state.cut_after])
            self.wfile.flush()
            if self.state.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(rest)

    def _error(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **head}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, tree: object) -> None:
        self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    # ---- uploads -------------------------------------------------------------------------

    def _about(self, repository: str) -> None:
        if repository not in self.state.repositories:
            return self._error("RepoNotFound")
        files = [{"rfilename": file} for file in self.state.repositories[repository]]
        return self._json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files, "tags": []})

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(text)
            name = f"{asked['organization']}/{asked['name']}"
            self.state.repositories.setdefault(name, {})
            self._json({"url": f"{self.state.url}/{name}", "name": name, "id": name})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(text)["files"]
            ]
            self._json({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.state.url}/upload/{o['oid']}", "header": {}}}}
                for o in json.loads(text)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in text.splitlines()])
        else:
            self._json({"errors": [], "warnings": []})  # /api/validate-yaml

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == digest
        self.state.stores[digest] = content
        self._send(200, b"", {})

    def _commit(self, repository: str, lines: list[dict]) -> None:
        files = self.state.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.stores[value["oid"]]
        self._json(
            {"commitUrl": f"{self.state.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        )

    def log_message(self, *args):
        pass
