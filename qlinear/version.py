"""The version of the program. Part of the ground floor."""

__version__ = "0.2.0"
