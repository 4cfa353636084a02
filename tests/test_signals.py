"""What a first and a second signal do to a driver."""

import os
import signal
from contextlib import suppress

import pytest

from scaling_search.driver.signals import Stopping


def test_a_first_signal_asks_and_a_second_one_ends() -> None:
    calls = []
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, Stopping(lambda: calls.append(1)) as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
        assert stopping.status == 143
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal ends the block")
    assert ended.value.code == 130
    assert calls == [1]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_second_signal_that_was_lost_ends_at_the_next_question() -> None:
    """Raised in a callback of the garbage collector, an exception is only printed."""
    with pytest.raises(SystemExit) as ended, Stopping(lambda: None) as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        stopping()
        pytest.fail("the question ends the block")
    assert ended.value.code == 143
