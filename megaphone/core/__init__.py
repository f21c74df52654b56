"""The rules of channels, agents and addresses, apart from every transport and every store."""
