"""A stand-in of the hub on this machine: the calls of its API that uploading a folder makes, and what came in them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """made: the repositories that were asked for; files: what was committed, by path; refuses: the status of a no."""

    token: str
    made: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    summary: str = ""
    refuses: int | None = None
    address: str = ""


@contextmanager
def standing_in(token: str) -> Iterator[Hub]:
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuses or self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._say({"error": "no such token here"}, hub.refuses or 401)
            if self.path == "/api/repos/create":
                hub.made.append(json.loads(body))
                return self._say({"url": f"{hub.address}/org/name"})
            if "/preupload/" in self.path:
                asked = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return self._say({"files": asked})
            if "/commit/" in self.path:
                for line in body.splitlines():
                    self._take(json.loads(line))
                return self._say({"commitUrl": f"{hub.address}/org/name/commit/1", "commitOid": "1", "success": True})
            return self._say({"errors": [], "warnings": []})

        def do_GET(self) -> None:
            self._say({"id": "org/name", "sha": "0", "siblings": []})

        def _take(self, line: dict) -> None:
            if line["key"] == "header":
                hub.summary = line["value"]["summary"]
            else:
                hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

        def _say(self, content: dict, status: int = 200) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
