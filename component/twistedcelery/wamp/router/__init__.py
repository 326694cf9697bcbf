"""What the bridge has to do with its router: connecting, authentication, registrations, leadership."""
