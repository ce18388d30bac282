"""Operations: rows, statements and recovery."""
