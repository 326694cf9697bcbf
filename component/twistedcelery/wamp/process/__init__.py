"""The bridge as a process of its own, and a client for its first call."""
