"""How many bytes a daemon keeps of each account: its entry in the fleet, and APScheduler's job."""

import gc
import json
import sys
import tracemalloc

from worker.core.entry import Entry
from worker.core.plan import Held, Life
from worker.schedule.clockwork import Clockwork


def main(accounts: int) -> None:
    clockwork = Clockwork(lambda _: None)
    clockwork.start()
    gc.collect()
    tracemalloc.start()
    entries = []
    for number in range(accounts):
        begins = float(number)
        held = Held(f"{number:016x}", Life(begins, begins + 3600), begins + 1800)
        entries.append(
            Entry(f"le{number:08}", held=held, host=f"va.sentinel.example:{number}", due=held.refresh_at + 1)
        )
        clockwork.at(entries[-1].name, 1e9 + begins)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    clockwork.stop()
    sys.stdout.write(json.dumps({"accounts": accounts, "bytes": round(kept / accounts)}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
