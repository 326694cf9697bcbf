"""What the bridge has to do with workers: which tasks they have, and what operators ask of them."""
