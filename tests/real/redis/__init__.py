"""The native Redis transport on real servers and workers."""
