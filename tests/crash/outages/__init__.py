"""What happens to traffic while the services beneath fail: outages one by one, or all at random.

Producers send until they are heard, as the docs tell them to; when all is calm again, nothing is
lost, stuck, left behind or there twice (:mod:`tests.crash.matrix.external` looks).
"""
