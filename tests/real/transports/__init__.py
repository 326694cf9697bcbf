"""The transports on real brokers and result backends."""
