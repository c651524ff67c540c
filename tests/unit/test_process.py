"""The process: a stop request is taken at any moment, and what the caller did to its streams harms nothing."""

import subprocess
import sys

SIGNAL_AT_EACH_LINE = """
import faulthandler, itertools, signal, sys
from worker import mainloop
from worker.ops import logs
from worker.schedule.dispatch import Pool

FILES = ("worker/mainloop.py", "schedule/dispatch.py", "threading.py", "queue.py", "futures/thread.py")

class Part:  # the daemon and its timer, which have nothing to do
    def __getattr__(self, name):
        return lambda *_: name == "tick" and signal.raise_signal(signal.SIGTERM)

def trace(frame, event, _):
    global lines
    if not frame.f_code.co_filename.endswith(FILES):
        return None
    if event == "line" and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        lines -= 1
        if not lines:
            signal.raise_signal(signal.SIGTERM)
    return trace

logs.configure("error", "json")
mainloop.TICK = 0.01
faulthandler.dump_traceback_later(30, exit=True)
for number in itertools.count(1):
    lines = number
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.settrace(trace)
    assert mainloop.run(Part(), Part(), Pool(1), None, lambda: None, lambda: None)
    sys.settrace(None)
    if lines > 0:
        break
print(number)
"""


def test_a_stop_request_is_taken_at_whichever_line_it_comes() -> None:
    """A handler that sets an Event would wait for ever for a lock that the main thread has taken amid `wait`."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AT_EACH_LINE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
