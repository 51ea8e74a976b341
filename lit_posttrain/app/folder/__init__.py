"""The folder of a run: whose it is, what belongs to it, and the parts in which it was made."""
