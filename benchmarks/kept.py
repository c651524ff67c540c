"""The memory of a daemon per account, in bytes: its record, and its entry in the heap of due times."""

import gc
import heapq
import json
import sys
import tracemalloc

from worker.core.plan import TrackedToken, Validity
from worker.core.record import AccountRecord


def main(accounts: int) -> None:
    gc.collect()
    tracemalloc.start()
    records = []
    due: list[tuple[float, str]] = []
    for number in range(accounts):
        begins = float(number)
        tracked = TrackedToken(f"{number:016x}", Validity(begins, begins + 3600), begins + 1800, begins + 1800.5)
        records.append(
            AccountRecord(
                f"le{number:08}", tracked=tracked, host=f"va.sentinel.example:{number}", due=tracked.refresh_at + 1
            )
        )
        heapq.heappush(due, (1e9 + begins, records[-1].name))
    gc.collect()
    retained_bytes = tracemalloc.get_traced_memory()[0]
    sys.stdout.write(json.dumps({"accounts": accounts, "bytes": round(retained_bytes / accounts)}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
