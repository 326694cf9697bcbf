"""What runs the real parts under test: processes, servers, a Celery application and its workers."""
