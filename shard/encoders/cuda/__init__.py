"""Passes on a CUDA device: formed in one block, recorded when short, asked for by one thread at a time."""
