"""Tests of twistedcelery: ``unit/`` does no I/O, ``real/`` talks to real servers, ``support/`` runs those."""
