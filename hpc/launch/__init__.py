"""Starting ranks and staying with them until they end."""
