"""What another user of this machine may do."""

from __future__ import annotations

import multiprocessing
import os
import pwd
from collections.abc import Callable
from pathlib import Path


def as_another_user(folder: Path, work: Callable[[], str]) -> str:
    """What `work` returns in a process that cannot write to the folder: root's, as user nobody; an
    ordinary user's, with the folder and its files made read-only."""
    files = [*folder.iterdir(), folder]
    modes = {path: path.stat().st_mode for path in files}
    receive, send = multiprocessing.Pipe(duplex=False)
    if os.getuid() != 0:
        for path in files:
            path.chmod(path.stat().st_mode & 0o555)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                nobody = pwd.getpwnam("nobody")
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
            send.send(work())
        except BaseException as error:
            send.send(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    assert receive.poll(60)
    said = receive.recv()
    os.waitpid(child, 0)
    for path, mode in modes.items():
        path.chmod(mode)
    return said
