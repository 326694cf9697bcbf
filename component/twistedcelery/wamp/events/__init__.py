"""Events of tasks and workers, from results and from Celery's event stream to WAMP topics."""
