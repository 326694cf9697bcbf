"""What a user writes: ``mypy --strict`` reads it, and `program` is run."""
