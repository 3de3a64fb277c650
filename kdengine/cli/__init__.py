"""The command line: commands, progress, report."""
