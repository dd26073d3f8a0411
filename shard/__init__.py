"""One model in one process: fetch, load, batch, encode."""
