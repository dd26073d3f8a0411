"""A transformer as a flat list of operations: captured once, fused, and run on texts that lie end to end."""
