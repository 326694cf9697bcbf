"""The demo application: an ordinary Celery application, found by ``celery -A my_app``."""

from my_app.celery import app

__all__ = ["app"]
