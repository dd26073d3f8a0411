"""What tests share: a hub on loopback, tiny models, and vectors recorded from the reference implementation."""
