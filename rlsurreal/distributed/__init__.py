"""What crosses process borders: shared arrays, wake-ups, child processes, parameters.  Imported by every layer above."""
