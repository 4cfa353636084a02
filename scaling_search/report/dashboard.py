"""A study as it runs: the page of report.html from the store, on 127.0.0.1. It reads and never
writes."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from scaling_search import UserError
from scaling_search.driver.progress import say
from scaling_search.report import render
from scaling_search.report.page import page_of
from scaling_search.results.reading import open_results
from scaling_search.results.store import Store

HOST = "127.0.0.1"


def serve(folder: Path, port: int, store: str | None, console: Console) -> int:
    """Until Ctrl-C. `port` 0 takes a free one. Raises UserError for a folder without a study, or a
    port in use."""
    content = _Content(folder, store)
    content.read()
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(content, folder.resolve().name))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port}: {reason}; choose another, or 0 for any") from None
    say(
        console,
        "dashboard",
        f"http://{HOST}:{server.server_port}/ (Ctrl-C ends it; the study goes on)",
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    finally:
        server.server_close()
    return 0


class _Content:
    """What the page shows now, made again only when the study has something new."""

    def __init__(self, folder: Path, store: str | None) -> None:
        self._folder, self._store = folder, store
        self._lock = threading.Lock()
        self._seen: object = None
        self._text, self._tag = "", ""

    def read(self) -> tuple[str, str]:
        """As JSON, with a tag that changes with it. Raises UserError."""
        with self._lock:
            source = open_results(self._folder, self._store, empty=True)
            try:
                records = source.records()
                state = source.fact("state") or "starting"
                seen = state, [(r.number, r.outcome is not None, r.test_acc) for r in records]
                if seen != self._seen:
                    page = page_of(source, self._folder)
                    ended = sum(r.outcome is not None for r in records)
                    told = f'"state":{json.dumps(f"{state}: {ended} runs recorded, {len(records) - ended} in progress")},'
                    self._text = "{" + told + render.content(page)[1:]
                    self._tag = f'"{hashlib.sha256(self._text.encode()).hexdigest()[:16]}"'
                    self._seen = seen
            finally:
                if isinstance(source, Store):
                    source.close()
            return self._text, self._tag


def _handler(content: _Content, title: str) -> type[BaseHTTPRequestHandler]:
    page = render.live(title).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a page elsewhere could otherwise read a study through a name that leads to 127.0.0.1
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (HOST, "localhost"):
                return self._send(
                    HTTPStatus.FORBIDDEN, b"only as 127.0.0.1 or localhost\n", "text/plain"
                )
            if self.path == "/":
                return self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")
            if self.path != "/content":
                return self._send(HTTPStatus.NOT_FOUND, b"not here\n", "text/plain")
            try:
                text, tag = content.read()
            except UserError as error:
                return self._send(
                    HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(), "text/plain; charset=utf-8"
                )
            if self.headers.get("If-None-Match") == tag:
                return self._send(HTTPStatus.NOT_MODIFIED, b"", "application/json", tag)
            return self._send(HTTPStatus.OK, text.encode(), "application/json", tag)

        def _send(self, status: HTTPStatus, body: bytes, kind: str, tag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if tag:
                self.send_header("ETag", tag)
            with suppress(ConnectionError):  # a page that was closed meanwhile
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing: a line every two seconds helps nobody."""

    return Handler
