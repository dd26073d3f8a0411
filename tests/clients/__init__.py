"""The clients of others against this server: ``make test-clients``. They run in an environment of their own."""
