"""The connections of the HTTP face, and the bytes on them.

Only this package uses the inside of aiohttp, which may change with any release of aiohttp:
`tests/rest/test_aiohttp_inside.py` checks that. The other modules of the face use its documented
interface.
"""
