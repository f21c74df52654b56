"""Another client of a node under load: `python other_client.py PORT`.

It creates a channel every 20 ms over one connection until it gets SIGTERM. It prints a line when it
has got the first answer. At the end it prints as JSON how many seconds each answer took. It fails
if the node does not serve it.
"""

import contextlib
import http.client
import json
import signal
import sys
import time

PAUSE_S = 0.02
TIMEOUT_S = 20
SERVED = "served"


class Terminated(Exception):
    pass


def on_sigterm(number: int, frame: object) -> None:
    raise Terminated


def main(port: int) -> None:
    times: list[float] = []
    signal.signal(signal.SIGTERM, on_sigterm)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.suppress(Terminated):
        while True:
            began = time.perf_counter()
            connection.request("POST", "/create")
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 429):
                sys.exit(f"not served: {answer.status}")
            if not times:
                print(SERVED, flush=True)
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE_S)
    print(json.dumps(times))


if __name__ == "__main__":
    main(int(sys.argv[1]))
