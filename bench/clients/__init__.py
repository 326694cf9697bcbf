"""One module for each contender; see `bench.contender.Contender`."""
