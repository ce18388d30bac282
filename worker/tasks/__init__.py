"""The steps of every operation. Read ``sagas.py`` first: which steps make an operation."""
