"""One module a host: where people already tune. Importing this package imports no TVM."""
