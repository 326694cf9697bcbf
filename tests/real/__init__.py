"""Tests against real servers, on free ports of the loopback interface."""
