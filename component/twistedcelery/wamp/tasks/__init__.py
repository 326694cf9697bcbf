"""Calls of tasks: what is exposed, how a call becomes a task, and how that is followed to its end."""
