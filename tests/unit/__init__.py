"""Tests without I/O: time moves through ``Clock``, transports are fakes."""
