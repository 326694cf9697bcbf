"""``twistedcelery demo``: router, bridge and worker on one machine, for as long as one looks at them."""
