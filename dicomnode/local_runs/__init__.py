"""Pipelines on files of a folder, without network and database: which file is which input, and where results go."""
