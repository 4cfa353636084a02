"""Runs as recorded: the store and its readers, locks, tables, every curve."""
