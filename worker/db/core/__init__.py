"""Engines, transactions and prepared statements."""
