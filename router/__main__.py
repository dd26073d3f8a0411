"""``python -P -m router PARENT_PID CONTROL_FD LISTEN_FD``: started by the supervisor only."""

import gc
import sys

from emb_model_provider.parent import die_with_parent

die_with_parent(int(sys.argv[1]))

gc.disable()  # nothing that imports make is garbage; ``main`` turns it on again

from router.main import main  # noqa: E402 - only now: it takes a second, in which the parent may die

sys.exit(main(sys.argv[1:]))
