"""Runs a router, the bridge and a worker on one machine: the command ``twistedcelery demo``."""
