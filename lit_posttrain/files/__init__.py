"""Files and folders that are there whole or not at all, and folders that belong to one process at a time."""
