"""How a plain function in a thread is stopped."""

import sys
import threading

import pytest

from streamq.worker.threads import JobInterrupted, ThreadCall


def traced(frame, what, arg):
    """See every line, as coverage and debuggers do."""
    return traced


class Run:
    """A call in a thread of its own, traced or not."""

    def __init__(self, function, *, is_traced: bool) -> None:
        self.call = ThreadCall(function, (), {})
        self.ended: list[object] = []
        self.thread = threading.Thread(target=self._run, args=(is_traced,), daemon=True)
        self.thread.start()

    def _run(self, is_traced: bool) -> None:
        if is_traced:
            sys.settrace(traced)
        try:
            self.ended.append(self.call())
        except JobInterrupted as error:
            self.ended.append(type(error))
        finally:
            sys.settrace(None)

    def join(self) -> object:
        self.thread.join(10)
        assert not self.thread.is_alive(), "the thread hangs"
        return self.ended[0]


@pytest.mark.parametrize("is_traced", [True, False])
def test_a_handler_that_goes_on_is_interrupted_also_while_it_is_traced(is_traced):
    started = threading.Event()

    def endless():
        started.set()
        while True:
            sum(range(10))

    for _ in range(20):
        started.clear()
        run = Run(endless, is_traced=is_traced)
        started.wait()
        run.call.interrupt()
        assert run.join() is JobInterrupted


@pytest.mark.parametrize("is_traced", [True, False])
def test_an_interruption_that_comes_as_the_handler_ends_hits_neither_its_end_nor_what_follows(is_traced):
    started = threading.Event()

    def brief():
        started.set()
        return "done"

    for _ in range(300):
        started.clear()
        run = Run(brief, is_traced=is_traced)
        started.wait()
        run.call.interrupt()
        assert run.join() in ("done", JobInterrupted)


def test_a_call_that_is_interrupted_before_it_begins_does_not_begin():
    call = ThreadCall(pytest.fail, ("must not run",), {})
    call.interrupt()
    with pytest.raises(JobInterrupted):
        call()


def test_a_handler_may_not_end_an_iteration_that_is_not_its_own():
    with pytest.raises(RuntimeError, match="the handler raised StopIteration"):
        ThreadCall(next, (iter(()),), {})()
