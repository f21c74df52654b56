"""All that leans on the inside of aiohttp: connections, and the bytes that they carry."""
