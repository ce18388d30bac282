"""Queues, brokers and results: everything that depends on how Celery and kombu send messages."""
