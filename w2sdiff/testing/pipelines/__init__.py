"""One file per family; each adds its rows to the table."""
