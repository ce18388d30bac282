"""The database: tables, transactions, and the functions that read and write the rows."""
