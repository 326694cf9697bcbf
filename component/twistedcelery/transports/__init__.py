"""Carries messages to the broker, and states and results back.

`interface` defines a `Transport`, and `registry` finds the ones that serve an application: `amqp` and
`redis`, which are native, or `threads`, for everything else. `binding` holds a client's transport.
"""
