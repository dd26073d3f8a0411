"""``python -P -m shard PARENT_PID CONTROL_FD``: started by the supervisor only."""

import sys

from shard.main import main

sys.exit(main(sys.argv[1:]))
