"""What every layer uses: data structures, files, logs, seeds, settings.  Imports nothing else of rlsurreal."""
