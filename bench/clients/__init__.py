"""One module for each client; see `bench.client.Client`."""
