"""What is encoded next, and beside what: requests become jobs, jobs batches, results answers. Run by ``engine``."""
