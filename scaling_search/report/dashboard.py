"""Serves the report of a study while it runs, on 127.0.0.1. It reads the store and never writes."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from scaling_search import UserError
from scaling_search.driver.console import say
from scaling_search.report import live, render
from scaling_search.report.page import command_of, page_of
from scaling_search.results.reading import open_results

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_FRESH = 1.0  # seconds for which what was read of the study is as good as new
_TEXT, _HTML, _JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


def serve(folder: Path, port: int, store: str | None, console: Console) -> int:
    """Serve until Ctrl-C and return the exit status. `port` 0 takes a free one.

    Raises UserError for a folder without a study, or a port in use."""
    state, content = _State(folder, store), _Content(folder, store)
    content.read()  # a folder without a study is refused before anything listens
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(state, content, folder.resolve().name))
    except (OSError, OverflowError) as error:  # OverflowError: a number that no port has
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port}: {reason}; choose another, or 0 for any") from error
    address = f"http://{HOST}:{server.server_port}/"
    say(console, "dashboard", f"{address} (Ctrl-C ends it; the study goes on)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    finally:
        server.server_close()
    return 0


class _Content:
    """The content of the page as JSON, made again only when the study has something new.

    Every open page asks for it each few seconds, while the verdict of a large study takes seconds:
    so it is made once for all of them, one request at a time."""

    def __init__(self, folder: Path, store: str | None) -> None:
        self._folder, self._store = folder, store
        self._lock = threading.Lock()
        self._version = ""  # of what the text was made from
        self._text, self._tag = "", ""

    def read(self) -> tuple[str, str]:
        """Return the JSON text, and a tag that changes with it. Raises UserError."""
        with self._lock, open_results(self._folder, self._store, empty=True) as results:
            version = live.version(results)
            if version != self._version:
                logger.info("a new page")
                self._text = render.content(page_of(results, self._folder))
                self._tag = f'"{hashlib.sha256(self._text.encode()).hexdigest()[:16]}"'
                self._version = version
            return self._text, self._tag


class _State:
    """What the study does now, as JSON, for all open pages: read at most once a second."""

    def __init__(self, folder: Path, store: str | None) -> None:
        self._folder, self._store = folder, store
        self._lock = threading.Lock()
        self._read_at = -_FRESH
        self._text = ""

    def read(self) -> str:
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH:
                self._text = self._read()
                self._read_at = time.monotonic()
            return self._text

    def _read(self) -> str:
        try:
            with open_results(self._folder, self._store, empty=True) as results:
                now = live.look(results)
                if now.command:  # a folder may have another name than when it was begun
                    command = command_of(results, results.facts(), self._folder)
                    now = replace(now, command=command)
        except UserError as error:
            logger.warning("%s", error)
            now = live.unreadable(str(error))
        shown = {"html": render.live_state(now), "brief": now.brief, "version": now.version}
        return json.dumps(shown)


def _handler(state: _State, content: _Content, title: str) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers requests: http.server makes an object of it for each."""
    page = render.live(title).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Otherwise a page elsewhere could read the study through a name of its own that leads
            # to 127.0.0.1 (DNS rebinding).
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if host not in (HOST, "localhost"):
                self._send(HTTPStatus.FORBIDDEN, "only as 127.0.0.1 or localhost\n", _TEXT)
            elif self.path == "/":
                self._send(HTTPStatus.OK, page, _HTML)
            elif self.path == "/live":
                text = state.read()
                self._send(HTTPStatus.OK, text, _JSON)
            elif self.path == "/content":
                self._send_content()
            else:
                self._send(HTTPStatus.NOT_FOUND, "no such page\n", _TEXT)

        def _send_content(self) -> None:
            try:
                text, tag = content.read()
            except UserError as error:
                logger.warning("%s", error)
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error), _TEXT)
                return
            if self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, "", _JSON, tag)
            else:
                self._send(HTTPStatus.OK, text, _JSON, tag)

        def _send(self, status: HTTPStatus, body: str | bytes, kind: str, tag: str = "") -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if tag:
                self.send_header("ETag", tag)
            with suppress(ConnectionError):  # the reader has closed the page
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Log nothing: every open page asks every two seconds."""

    return Handler
