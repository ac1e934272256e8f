"""Configurations: one file per method; `get_config(arg)` returns a locked ConfigDict."""
