"""Workers: control commands, queries and events."""
