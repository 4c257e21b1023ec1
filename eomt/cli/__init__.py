"""The command line: configuration, objects, errors in one line."""
