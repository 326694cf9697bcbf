"""One call or canvas, from the queue to its end."""
