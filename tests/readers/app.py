"""An app around examples/read_token.py: a command a line on stdin, an answer in JSON a line on stdout.

`python app.py read_token.py ACCOUNT`; `later SECONDS` moves its clocks ahead. The steady one stops between commands, so
that a busy machine makes no difference.
"""

import json
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor

program, account = sys.argv[1:]
ahead: list[float] = []
idle: list[float] = []
real_time, real_monotonic = time.time, time.monotonic
vars(time).update(
    time=lambda: real_time() + sum(ahead),
    monotonic=lambda: real_monotonic() + sum(ahead) - sum(idle),
)
jwt = runpy.run_path(program)["AppJWT"](account)


def ask() -> object:
    """Return the token that several requests at once got, or all of them where they differ."""
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: jwt.headers()["Authorization"], range(3)))
    return results[0] if len({*results}) == 1 else results


ended = real_monotonic()
for line in sys.stdin:
    idle.append(real_monotonic() - ended)
    command, _, argument = line.strip().partition(" ")
    result: object = None
    try:
        match command:
            case "later":
                ahead.append(float(argument))
            case "refused":
                result = jwt.refused(argument)
            case "ask":
                result = ask()
        answer = {"result": result}
    except Exception as error:  # noqa: BLE001
        answer = {"error": str(error)}
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
    ended = real_monotonic()
