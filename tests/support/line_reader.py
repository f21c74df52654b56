"""A reader as a separate process, so that a test can kill it. It prints one line for each event.

Arguments: the port, and the path with its query. It uses only the standard library, so that it
starts quickly.
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
