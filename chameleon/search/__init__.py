"""The search engine: ask for configurations, measure them anywhere, tell the outcome. It never imports tvm."""
