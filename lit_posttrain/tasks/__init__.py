"""The embedded tasks: their states, texts, exact solutions and scores. Standard library only."""
