"""The commands of the app, one module a group; nothing here imports torch at import."""
