"""What a call costs beside other clients and the wire: ``make bench``, ``python -m bench --help``."""
