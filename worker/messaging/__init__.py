"""Queues, brokers and results: all that speaks to Celery and kombu."""
