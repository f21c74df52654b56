"""The stores, which keep channels and their events. Each store fulfils `core.ports.Store`."""
