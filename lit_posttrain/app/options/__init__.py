"""What is said of a configuration: what is wrong with it, what was meant, what has changed."""
