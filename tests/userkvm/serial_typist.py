"""Waits for a guest's prompt on its serial line, a socket, types one line, and prints what comes back until its end.

python3 serial_typist.py SOCKET PROMPT LINE END SECONDS
"""

from __future__ import annotations

import socket
import sys


def main(path: str, prompt: str, line: str, end: str, seconds: str) -> int:
    """1 if the guest says nothing for so long."""
    with socket.socket(socket.AF_UNIX) as serial:
        serial.connect(path)
        serial.settimeout(float(seconds))
        heard = ""
        for text in (prompt, end):
            while text not in heard:
                try:
                    more = serial.recv(4096).decode("latin-1")
                except TimeoutError:
                    return 1
                if not more:
                    return 1
                print(more, end="", flush=True)
                heard += more
            if text == prompt:
                heard = ""
                serial.sendall(line.encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
