"""Several runs in a row, each from what one before has exported."""
