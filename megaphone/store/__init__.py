"""Where channels live between their writers and readers. Each store fulfils `core.ports.Store`."""
