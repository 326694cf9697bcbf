"""Calls, canvases and control commands to messages, by Celery's own code, without I/O."""
