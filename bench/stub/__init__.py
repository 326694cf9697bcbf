"""A worker that answers at once, so that it is not the limit of what is measured.

It knows the two tasks of the bench, and answers in Celery's format. It leaves out all else that a worker
does.
"""
