"""The HTTP front door: OpenAI-compatible endpoints, forwarded to the shard of each model."""
