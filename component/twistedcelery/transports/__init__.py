"""What carries messages to the broker, and states and results back.

`interface` says what the client needs; `choose` decides which of the implementations serves an
application: `amqp`, native, or `threads`, for everything else.
"""
