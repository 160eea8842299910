"""Accounts of the web: names, passwords, tokens, and what is done with them."""
