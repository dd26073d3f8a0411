"""``python -m supervisor``: start the server."""

import sys

from emb_model_provider.main import main

sys.exit(main())
