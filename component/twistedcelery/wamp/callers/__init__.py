"""``celery_api.*``: the procedures for callers, and who answers questions about a task's id."""
