"""Other servers on the same machine, with the same model, texts and load: ``python -m benchmarks.peers``."""
