"""Generated parts of the documentation: reference tables from the code, as Markdown."""
