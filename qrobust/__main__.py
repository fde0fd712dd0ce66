"""The one place that prints an error and exits.

0, 1 and 2 are a verb's own, as `qrobust --help` says, and 1 is always a verdict. Beside them: 70 after the traceback of
a fault of qrobust's own; 130, stopped by Ctrl-C; 141, nobody reads standard output any more.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import signal
import sys
import traceback
from contextlib import suppress

from .errors import QrobustError, one_line

LEAST_MEMORY = 192 * 2**20  # bytes of addresses; none of it is used
REFUSED, UNEXPECTED, INTERRUPTED, CLOSED = 2, 70, 130, 141


def main() -> None:
    """Run the command line and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # whoever ignores it has a reason
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = _verb()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be told
    except BaseException as error:
        code = _code(error)
        _let_go()
    sys.exit(code)


def _interrupt(*_: object) -> None:
    """Ctrl-C. Inside of an import of torch or onnxruntime an exception would abort the process, with a core dump."""
    names = ("torch", "torchvision", "onnx", "onnxruntime", "brevitas")
    specs = (getattr(sys.modules.get(name), "__spec__", None) for name in names)
    if any(getattr(spec, "_initializing", False) for spec in specs):
        os._exit(INTERRUPTED)  # files are written whole, and the system frees the lock
    raise KeyboardInterrupt


def _verb() -> int:
    """What the verb of sys.argv returns."""
    # With less, numpy's OpenBLAS ends the process by an exit code of 1, which would be a verdict.
    mmap.mmap(-1, LEAST_MEMORY).close()
    from .cli import app

    for before, value in zip(sys.argv, sys.argv[1:], strict=False):
        if not value or (value.startswith("--") and value.find("=") == len(value) - 1):  # a variable never set
            given = value[:-1] or (before if before.startswith("-") else "an argument")
            raise QrobustError(f"expected a value for {given}, got an empty one; set it, or leave it out")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an arrow, or a name, that the locale has no letter for
    code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    return int(code or 0) if len(sys.argv) > 1 else REFUSED


def _code(error: BaseException) -> int:
    """The exit code of what ended a verb, once it is told."""
    if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
        return error.code if error.code in (0, REFUSED) and isinstance(error.code, int) else UNEXPECTED
    if isinstance(error, (SystemExit, BrokenPipeError)):  # rich and typer make the one of the other
        return CLOSED
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return INTERRUPTED
    line = _line(error)
    with suppress(OSError):  # standard error may be full as well
        print(f"error: {one_line(line)}" if line else "".join(traceback.format_exception(error)), file=sys.stderr)
    if isinstance(error, QrobustError):
        return error.exit_code
    return REFUSED if line else UNEXPECTED


def _line(error: BaseException) -> str:
    """What a user can mend, in one line; "" for a fault of qrobust's."""
    if _is_memory(error):
        return "expected more memory, got no more; free some, raise the process's limit (ulimit -v), or ask for less"
    if isinstance(error, ImportError) and not (error.name or "").startswith("qrobust"):
        while isinstance(error.__cause__ or error.__context__, ImportError):  # numpy wraps it in a page of advice
            error = error.__cause__ or error.__context__  # type: ignore[assignment]
        return f"expected a library that loads, got: {error}; install it, or raise the process's limits (ulimit -v)"
    if isinstance(error, OSError):
        where = error.filename or "standard output"
        return f"expected to reach {where}, got: {error.strerror or error}; make room, or choose another place"
    if hasattr(error, "format_message"):  # of the command line itself
        return f"{error.format_message().rstrip('.')}; see qrobust --help, or the verb's"
    return str(error) if hasattr(error, "exit_code") else ""


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a mapping's, or torch's, which has several errors for it."""
    torch = "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)
    return torch or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def _let_go() -> None:
    """What standard output cannot write goes nowhere: Python would try once more as it ends, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # full, closed, or none at all
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
