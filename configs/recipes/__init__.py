"""Starting points for runs that no paper describes; each is a config like those above it."""
