import os
import signal
import threading

import pytest

from tokencredit.recipes.run.stop_signals import StopRequest, stop_requests


@pytest.fixture
def interruptible():
    """What a shell in the background takes away: an interrupt that raises KeyboardInterrupt."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_the_first_signal_is_noted_and_the_second_one_is_not(capfd):
    handler = signal.getsignal(signal.SIGINT)
    with stop_requests("one more step") as stop:
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capfd.readouterr().err == "SIGINT: one more step\n"


def test_without_a_signal_handlers_are_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests("one more step"):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_other_threads_run_without():
    found = []

    def noted() -> None:
        with stop_requests("one more step") as stop:
            found.append(stop.number)

    thread = threading.Thread(target=noted)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_run_ends_as_programs_do():
    with pytest.raises(KeyboardInterrupt):
        StopRequest(signal.SIGINT).end()
    with pytest.raises(SystemExit) as ended:
        StopRequest(signal.SIGTERM).end()
    assert ended.value.code == 143
