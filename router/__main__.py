"""``python -P -m router PARENT_PID CONTROL_FD LISTEN_FD``: started by the supervisor only."""

import sys

from router.main import main

sys.exit(main(sys.argv[1:]))
