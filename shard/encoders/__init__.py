"""The ways to turn tokens into vectors, each behind the `shard.encoder.Encoder` protocol."""
