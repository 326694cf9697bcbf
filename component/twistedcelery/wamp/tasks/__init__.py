"""Tasks: which ones are exposed, how a call or an event becomes one, and how it is followed to its end."""
