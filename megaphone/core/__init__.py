"""The rules of channels, agents and addresses, independent of each transport and each store."""
