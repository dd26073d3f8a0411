"""``python -m supervisor``: start the server."""

import sys

from supervisor.cli import main

sys.exit(main())
