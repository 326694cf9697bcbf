"""``celery_admin.*``: commands and queries to workers, for operators."""
