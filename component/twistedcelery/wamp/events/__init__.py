"""What happens to tasks and workers, from results and Celery's event stream to WAMP topics."""
