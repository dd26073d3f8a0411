"""The entry of ``emb-provider`` and ``python -m emb_model_provider.main``: the same as ``python -m supervisor``."""

from __future__ import annotations

import sys


def main() -> int:
    """Hand over to the supervisor and return its exit code."""
    # The only place where the common ground looks up: kept inside the function so that importing it stays cheap.
    from supervisor.cli import main as supervise  # noqa: PLC0415

    return supervise()


if __name__ == "__main__":
    sys.exit(main())
