"""``python -P -m shard PARENT_PID CONTROL_FD``: started by the supervisor only."""

import sys

from emb_model_provider.parent import die_with_parent

die_with_parent(int(sys.argv[1]))

from shard.main import main  # noqa: E402 - only now: it takes a second, in which the parent may die

sys.exit(main(sys.argv[1:]))
