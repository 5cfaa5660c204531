"""The ``casemate`` command: one module per subcommand, imported when it is called (docs/guide)."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from casemate.cli.parser import load_command, parse
from casemate.errors import CasemateError, printable

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_NO_THREAD = "can't start new thread"
"""What Python's RuntimeError says."""
_HOST_CANNOT, _INTERNAL, _INTERRUPTED, _NOBODY_READS = 5, 6, 130, 141
"""Exit codes; the last one is what a shell shows for SIGPIPE."""


def main(argv: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Run one command; returns the exit code. Every error is one line on standard error.

    ``own_process`` says that nothing else goes on in this process, so that a guest may be run in a sandbox.

    Raises SystemExit for a line that asks for help or cannot be read.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        args = parse(arguments)
        args.command_line, args.own_process = ["casemate", *arguments], own_process
        if own_process:
            _collect_garbage()
        return load_command(args.command).run(args)

    return exit_code_of(run)


def exit_code_of(run: Callable[[], int]) -> int:
    """What ``run`` returns; every error is one line on standard error, and its exit code."""
    try:
        return run()
    except CasemateError as error:
        print(f"casemate: error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _NOBODY_READS
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
            return _output_failed(error)
        if remedy := _remedy(error):
            print(f"casemate: error: {error}; {remedy}", file=sys.stderr)
            return _HOST_CANNOT
        print(f"casemate: internal error: {type(error).__name__}: {error}; please report it", file=sys.stderr)
        return _INTERNAL


def start() -> NoReturn:
    """The process ``casemate``: ``main`` with the standard streams as they should be, before and after."""
    _open_closed_streams()
    gc.disable()  # what is loaded stays: nobody needs to look there for garbage
    try:
        code: int | str | None = main(own_process=True)
    except SystemExit as asked:  # by argparse
        code = asked.code
    code = _flush(code)
    gc.freeze()  # nor on the way out, where Python looks at everything: a tenth of a short command's time
    sys.exit(code)


def _collect_garbage() -> None:
    """From now on, and only of what comes."""
    gc.freeze()
    gc.enable()


def _open_closed_streams() -> None:
    """A stream that was closed by the caller reads nothing and writes nowhere, and no other file gets its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _flush(code: int | str | None) -> int | str | None:
    """Write what is left to write; the exit code, another one if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again on its way out, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code:
            return code
        return _NOBODY_READS if isinstance(error, BrokenPipeError) else _output_failed(error)
    return code


def _remedy(error: Exception) -> str | None:
    """What to do about an error of the host that nobody expected where it came; None of any other."""
    if isinstance(error, ImportError):
        return "install casemate anew, with its dependencies"
    if str(error) == _NO_THREAD or isinstance(error, MemoryError):
        return "raise the limits of processes and memory (ulimit -u, -v)"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    if isinstance(error, OSError) and error.errno in (*_UNWRITABLE, errno.ENOMEM):
        return "see what the system's log says about its disks and memory"
    return None


def _output_failed(error: OSError) -> int:
    reason = os.strerror(error.errno or 0)
    print(f"casemate: error: standard output cannot be written: {reason}; make room there", file=sys.stderr)
    return _HOST_CANNOT
