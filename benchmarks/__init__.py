"""What the server does at the machine's limit, as ratios measured side by side in one run. See ``__main__``."""
