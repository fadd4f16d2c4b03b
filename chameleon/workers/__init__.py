"""Worker processes that stay warm. One may crash or hang without harm to the others. Nothing here knows TVM."""
