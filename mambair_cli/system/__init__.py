"""The machine: devices, memory, scratch space."""
