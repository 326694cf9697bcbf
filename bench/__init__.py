"""What a call costs beside Celery's own client: ``make bench``, or ``python -m bench --help``."""
