"""The one place that prints an error and exits."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; exit 0, 1 or 2, or 130 when stopped by Ctrl-C."""
    from .cli import app

    try:
        sys.exit(app())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if getattr(error, "exit_code", None) != 2:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
