"""The teacher server: one model behind HTTP, for Limbeck's own clients and for ordinary ones."""
