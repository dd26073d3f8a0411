"""A mapping entry → an encoder that is known to answer: what is fetched, built, tried and chosen. Run by ``main``."""
