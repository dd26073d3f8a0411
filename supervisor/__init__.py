"""Spawns, watches and restarts the router and one shard per model; owns the port and the run directory."""
