"""The steps of all operations. Read ``sagas.py`` first: it lists the steps of each operation."""
