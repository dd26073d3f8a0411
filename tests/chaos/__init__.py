"""A run in which everything goes wrong at random, and a check of every answer."""
