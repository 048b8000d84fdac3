"""What makes the site of the repository's files: ``python -m docs.site.build``."""
