"""The entry of ``emb-provider``, ``python -m emb_model_provider.main`` and ``python -m supervisor``."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Hand over to the supervisor and return its exit code."""
    # Ctrl-C while this is being imported, or the settings are read: there is nothing to be tidied up, nor to be traced.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The only place where the common ground looks up: kept inside the function so that importing it stays cheap.
    from supervisor.cli import main as supervise  # noqa: PLC0415

    return supervise()


if __name__ == "__main__":
    sys.exit(main())
