"""What people read when the work is done: the comparison of a sweep's jobs."""
