"""The transports without I/O: fakes, and a clock that the test moves."""
