"""The native Redis transport on links that do what the test says."""
