"""Asking the guest owner between measuring and running: a command or a socket answers (docs/guide/session.md).

The question and the answer are one line of JSON each.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.confidential.preparation import AttestationRequest, LaunchSecret
from casemate.errors import HostError, ImageError, InsecureError, SpecError
from casemate.firmware.guided_table import GuestArea

Ask = Callable[[str], str]
"""Takes the question, returns the answer; both lines of JSON."""

_LONGEST_ANSWER = 1 << 20
_REMEDY = "answer {} for no secret, or its packet-header and secret in base64"


@dataclass(frozen=True, slots=True)
class OwnerChannel:
    """How the owner is asked, and what for: the secret that the answer holds, or None."""

    ask: Ask
    name: str
    """What the user called it, for errors."""

    def __call__(self, request: AttestationRequest) -> LaunchSecret | None:
        """Raises InsecureError if the owner refuses, SpecError for an answer that is none, ImageError without area."""
        answer = self.ask(json.dumps(_question(request)))
        try:
            document = json.loads(answer or "{}")
            if not isinstance(document, dict):
                raise ValueError("it is no object")
            return _secret(document, request)
        except (ValueError, binascii.Error) as error:
            raise SpecError(f"{self.name} answered what is no answer: {error}", _REMEDY) from None


def ask_command(command: str, timeout: float) -> Ask:
    """The answer is what the command prints; it reads the question. Refuses by an exit code other than 0."""

    def ask(question: str) -> str:
        try:
            done = subprocess.run(
                shlex.split(command),
                input=f"{question}\n",
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InsecureError(
                f"--attest-cmd: no answer within {timeout:g} s", "see what it waits for"
            ) from None
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise SpecError(f"--attest-cmd {command!r} cannot be run: {cause}", "check the command") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InsecureError(
                f"--attest-cmd refused, exit code {done.returncode}: {last}", "the guest was not started"
            )
        return done.stdout

    return ask


def ask_socket(path: Path, timeout: float) -> Ask:
    """The answer comes from whoever connects to a Unix socket at ``path`` and reads the question from it."""

    def ask(question: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(path))
                try:
                    listener.settimeout(timeout)
                    listener.listen(1)
                    return _converse(listener, question, timeout)
                finally:
                    path.unlink(missing_ok=True)
        except TimeoutError:
            raise InsecureError(
                f"--attest-socket {path}: no answer within {timeout:g} s", "connect earlier"
            ) from None
        except OSError as error:
            raise HostError("socket", error.errno or 0, str(path), "name a path that is free") from None

    return ask


def _converse(listener: socket.socket, question: str, timeout: float) -> str:
    peer, _ = listener.accept()
    with peer, peer.makefile("rw", encoding="utf-8") as stream:
        peer.settimeout(timeout)
        stream.write(f"{question}\n")
        stream.flush()
        answer = stream.readline(_LONGEST_ANSWER)
    if not answer:
        raise InsecureError(
            "--attest-socket: the owner hung up without an answer", "the guest was not started"
        )
    return answer


def _question(request: AttestationRequest) -> dict[str, Any]:
    area = request.secret_area
    return {
        "guest": str(request.kind),
        "measurement": base64.b64encode(request.measurement.mac + request.measurement.nonce).decode(),
        "policy": request.policy,
        "api-major": request.version[0],
        "api-minor": request.version[1],
        "build-id": request.version[2],
        "digest": request.digest.hex(),
        "secret-area": {"gpa": area.base, "size": area.size} if area else None,
    }


def _secret(document: dict[str, Any], request: AttestationRequest) -> LaunchSecret | None:
    if "secret" not in document and "packet-header" not in document:
        return None
    texts = [document.get(name) for name in ("packet-header", "secret")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("packet-header and secret belong together, in base64")
    header, data = (base64.b64decode(str(text), validate=True) for text in texts)
    gpa = document.get("gpa")
    if isinstance(gpa, str):
        gpa = int(gpa, 0)
    if gpa is not None and not isinstance(gpa, int):
        raise ValueError("gpa is no address")
    return LaunchSecret(header, data, place_secret(request, len(data)) if gpa is None else gpa)


def place_secret(request: AttestationRequest, size: int) -> int:
    """Where a secret of this size belongs in this firmware. Raises ImageError if it has no place for it."""
    area: GuestArea | None = request.secret_area
    remedy = "use firmware that sets an area apart, such as edk2's AmdSev, or answer with a gpa"
    if area is None:
        raise ImageError(request.firmware, "the image has no area for a secret", remedy)
    if not area.is_usable:
        where = f"base {area.base:#x}, size {area.size:#x}"
        raise ImageError(request.firmware, f"the area for a secret is unusable ({where})", remedy)
    if size > area.size:
        raise ImageError(
            request.firmware, f"the secret has {size} bytes, the area for it {area.size}", "send less"
        )
    return area.base
