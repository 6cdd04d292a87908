"""The networks. Each file has a configuration, a module and `detect(state_dict) -> configuration | None`."""
