"""Asks one HTTPS address for its status ten times a second and prints when it answered, and who did.

`python -m tests.lab.knocker HOST` in the namespace of a client; ends with its standard output.
"""

import json
import sys
import time

from tests.lab.api import Api


def main(host: str) -> None:
    """Knock until nobody listens."""
    api = Api(f"{host}:443", timeout_s=0.6)
    while True:
        began = time.monotonic()
        try:
            answer = api.ask("GET", "/status")
            who = answer.body["name"] if answer.status == 200 else ""
        except OSError:
            who = ""
        sys.stdout.write(json.dumps([time.monotonic(), who]) + "\n")
        sys.stdout.flush()
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


if __name__ == "__main__":
    main(sys.argv[1])
