"""A reader as a process of its own, to be killed: prints the events of one read, line by line.

Arguments: the port, and the path with its query. Nothing but the standard library, for a quick
start.
"""

import http.client
import sys


def main() -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("GET", sys.argv[2])
    response = connection.getresponse()
    if response.status != http.client.OK:
        sys.exit(f"status {response.status}")
    while line := response.readline():
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
