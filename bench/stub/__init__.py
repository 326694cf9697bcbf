"""A worker that answers at once, so that it is not the limit of what is measured.

It knows the one task of the bench, and answers in Celery's format; it leaves out all else that a worker does.
"""
