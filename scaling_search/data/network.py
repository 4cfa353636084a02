"""Reaching a server, or giving up soon."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from typing import IO

CONNECT_SECONDS = 4.0  # that a server has to answer: without a network people wait for so long


class NoNetworkError(Exception):
    """The file cannot be fetched."""


def reach(url: str) -> IO[bytes]:
    """Return a server's answer, of any status, its body not read yet. Raises NoNetworkError when
    none begins within CONNECT_SECONDS, name look-up included."""
    answers: list[IO[bytes]] = []
    failures: list[Exception] = []

    def connect() -> None:
        try:
            answers.append(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except urllib.error.HTTPError as error:
            answers.append(error)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(error)

    # getaddrinfo knows no timeout, so the wait is on a thread that may be left behind
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if failures:
        raise NoNetworkError(str(failures[0])) from failures[0]
    if not answers:
        raise NoNetworkError(f"no answer within {CONNECT_SECONDS:g} s")
    return answers[0]


def download(url: str) -> bytes:
    """Return the file at `url`. Raises NoNetworkError."""
    answer = reach(url)
    try:
        with answer:
            if isinstance(answer, urllib.error.HTTPError):
                raise NoNetworkError(str(answer))
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoNetworkError(f"download broke off: {error}") from error
