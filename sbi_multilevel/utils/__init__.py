"""Checks of arguments and of files."""
