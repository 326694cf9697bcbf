"""``celery_api.*``: what callers may ask of the tasks, by name and by id."""
