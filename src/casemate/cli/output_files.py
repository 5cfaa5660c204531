"""Files that a command writes because somebody named them (write(2))."""

from __future__ import annotations

from casemate.errors import HostError


def write_file(path: str, data: bytes) -> None:
    """Write a whole file. Raises HostError if the disk refuses."""
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise HostError("write", error.errno or 0, path, "name a place that you may write to") from None
