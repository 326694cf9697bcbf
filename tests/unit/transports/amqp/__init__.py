"""The AMQP transport on links that are the test's."""
