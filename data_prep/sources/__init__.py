"""One module per data source; each turns a folder on disk into study records."""
