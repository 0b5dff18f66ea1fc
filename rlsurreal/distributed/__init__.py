"""What crosses process borders: shared arrays, wake-ups, child processes, parameters.  For every layer above."""
