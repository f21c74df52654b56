"""Another client of a node under load: `python other_client.py PORT [TOKEN]`.

It creates a channel every 20 ms over one connection until it gets SIGTERM. A client with a token is
another tenant than the load, and must never be refused. It prints a line when it has got the first
answer. At the end it prints as JSON how many seconds each answer took. It fails if the node does
not serve it.
"""

import http.client
import json
import signal
import sys
import time

PAUSE_S = 0.02
TIMEOUT_S = 20
SERVED = "served"


class Client:
    """What the handler of SIGTERM changes. If it raised an error in place of that, the error might
    come in a destructor, where it is lost."""

    is_wanted = True

    def end(self, number: int, frame: object) -> None:
        self.is_wanted = False


def main(port: int, token: str | None = None) -> None:
    times: list[float] = []
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    served = (200, 429) if token is None else (200,)
    client = Client()
    signal.signal(signal.SIGTERM, client.end)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    while client.is_wanted:
        began = time.perf_counter()
        connection.request("POST", "/create", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status not in served:
            sys.exit(f"not served: {answer.status} {body!r}")
        if not times:
            print(SERVED, flush=True)
        times.append(time.perf_counter() - began)
        time.sleep(PAUSE_S)
    print(json.dumps(times))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
